"""Launches that begin before the kernel before them has ended, and wait for it only where they read what it wrote.

A kernel so launched may read, before `wait_for_inputs`, only what no kernel of the same graph writes: weights, and what an earlier
replay left. Launched otherwise, the wait does nothing. (CUDA programming guide, programmatic dependent launch.)
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

    _KNOWN = True
except ImportError:  # an older Triton
    gdc_launch_dependents = gdc_wait = None
    _KNOWN = False


@triton.jit
def wait_for_inputs(dependent: tl.constexpr):
    """Let the next kernel begin, then wait until all before this one have ended."""
    if dependent:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def wait_and_hold(dependent: tl.constexpr):
    """Wait until all kernels before this one have ended, and only then let the next begin."""
    if dependent:
        gdc_wait()
        gdc_launch_dependents()


@cache
def launch_options(device: torch.device) -> dict[str, Any]:
    """`dependent` for the kernel, and what its launch needs for it; from compute capability 9.0 on."""
    able = _KNOWN and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"dependent": True, "launch_pdl": True} if able else {"dependent": False}
