"""Triton bodies, one file an op: kernels and their launch, no autograd and no modules."""
