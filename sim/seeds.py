"""Whose seeds are whose: below the first for demonstrations and rollouts of training.

From the first on they are for evaluations, from the last on for calibrating a policy's confidence.
"""

EVAL_SEED_START = 1_000_000
CALIBRATION_SEED_START = 2_000_000
