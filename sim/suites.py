"""Names of the suites, and which seeds are kept for evaluation."""

LIBERO_SUITES = ('libero_spatial', 'libero_object', 'libero_goal', 'libero_10', 'libero_90')
SUITES = ('tabletop', *LIBERO_SUITES)
# Demonstrations and rollouts for training use seeds below this, evaluations the rest.
EVAL_SEED_START = 1_000_000
