"""Training of a backbone and its memory tables in one process."""
