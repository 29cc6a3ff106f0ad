"""Actions: chunks, tokens, statistics, controller units. Imports numpy and scipy only."""
