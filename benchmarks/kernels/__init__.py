"""`python -m benchmarks.kernels`: every kernel against the hardware's ceilings, torch eager and torch.compile."""
