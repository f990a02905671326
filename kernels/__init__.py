"""The numeric core of the model: each Triton kernel beside its reference in torch, behind one function for callers.

`kernels/x.py` holds the public function and the reference, `kernels/gpu/x.py` the Triton kernel, which is
imported at the first call that `kernels/dispatch.py` gives to it.
"""
