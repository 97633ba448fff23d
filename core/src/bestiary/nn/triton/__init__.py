"""Kernels for CUDA, written in Triton, and the versions of ops that they make. Nothing here imports Triton until a
kernel runs: the CPU build of torch does not bring it.

A kernel's module has the kernels (`@triton.jit`), the function that launches them with the signature of the op's torch
reference, and `variants()`: every way in which that function may launch them, so that tests can compile all of them
ahead of time. `offers.py` lists the versions of ops, `available.py` says where they run.
"""
