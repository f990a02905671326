"""Training runs: from a configuration to a model, with checkpoints, a log and an evaluation."""
