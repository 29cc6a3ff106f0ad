"""Writes thoughts into demonstrations: key frames, labels, review, filling in."""
