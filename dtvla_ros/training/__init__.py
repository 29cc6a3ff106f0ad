"""Data and learning: collect, fine-tune."""
