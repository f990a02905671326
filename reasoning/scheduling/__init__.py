"""Scheduling: which tokens run next, which rows are requested ahead, and which pages of the cache they use."""
