"""Triton kernels. Imported only where `kernels/dispatch.py` has decided for them, so that Triton may be missing."""
