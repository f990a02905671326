"""Triton kernels, each beside its torch reference. Hugging Face publishes a package of this name: see README."""
