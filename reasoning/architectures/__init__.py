"""Architectures: a folder for each, and one lookup from `model_type` to how its models are read, built and cached."""
