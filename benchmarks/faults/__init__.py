"""Faults of the chaos and fuzz benchmarks: clients under load, hostile requests, and seeded damage to messages."""
