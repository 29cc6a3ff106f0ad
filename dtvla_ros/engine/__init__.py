"""Inference: policies, engines, export, benchmark. Nothing heavy is imported here."""
