"""Policies: config, tokenizer, transform, model, manifest and checkpoints."""
