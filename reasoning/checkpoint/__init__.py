"""Checkpoints: weights in Hugging Face layout, read and written."""
