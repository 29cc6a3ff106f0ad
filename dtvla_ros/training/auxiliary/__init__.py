"""Auxiliary objectives of small policies trained from nothing."""
