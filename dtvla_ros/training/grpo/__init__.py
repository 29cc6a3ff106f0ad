"""Learning from what the policy does: rollouts, GRPO, DAgger."""
