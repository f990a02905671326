"""Reasoning workers: engines in this process or as Ray actors."""
