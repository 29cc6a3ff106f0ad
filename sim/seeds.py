"""Demonstrations and rollouts for training use seeds below this, evaluations the rest."""

EVAL_SEED_START = 1_000_000
