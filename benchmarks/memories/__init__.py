"""Memories that benchmarks compare: distant, resident on the device, cached, or filled with random rows."""
