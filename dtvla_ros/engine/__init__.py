"""How the decoder runs: engines, one decision, export. Nothing heavy is imported here."""
