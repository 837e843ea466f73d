"""Decoding by a step of our own: fused kernels over a static cache, one CUDA graph a token."""

from featherweight.decoding.reading import read_decoder, why_not
from featherweight.decoding.runner import Runner, open_runner
from featherweight.decoding.sampling import Sampling

__all__ = ["Runner", "Sampling", "open_runner", "read_decoder", "why_not"]
