"""Batch jobs: JSONL in, JSONL out, resumable after an interruption at any moment."""
