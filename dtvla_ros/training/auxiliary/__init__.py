"""Auxiliary supervision of small policies trained from scratch; nothing of it is exported."""
