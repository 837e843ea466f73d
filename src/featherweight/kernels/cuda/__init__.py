"""Kernels in CUDA C++, compiled when a CUDA tensor first needs one; importing this imports and compiles nothing."""
