"""Sampling: the next token from the logits, and penalties on tokens a sequence already has."""
