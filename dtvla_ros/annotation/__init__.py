"""Thoughts for demonstrations that have none: key frames, labels, review, filling in."""
