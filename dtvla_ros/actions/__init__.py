"""What an action is. Imports numpy and scipy only."""
