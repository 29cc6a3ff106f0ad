"""Runs episodes: environments, workers and the loop every user of them shares."""
