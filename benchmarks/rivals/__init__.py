"""Rivals of the lookup and throughput benchmarks: what a user would build or install instead, kept minimal."""
