"""Learning: shards that hold optimizer state beside their rows, and apply the gradients that workers push."""
