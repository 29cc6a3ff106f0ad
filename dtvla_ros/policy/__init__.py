"""The hybrid decoder: sizes, words, who sees whom, the model and its manifest."""
