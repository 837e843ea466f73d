"""Means over windows and their standard errors."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mean_with_error(values: Tensor) -> tuple[float, float | None]:
    """Mean of `values [windows]` and its standard error `s / √n`, `s` with n − 1; None for a single window."""
    values = values.to(torch.float64)
    count = values.numel()
    return float(values.mean()), float(values.std()) / math.sqrt(count) if count > 1 else None


def perplexity_with_error(window_nll: Tensor) -> tuple[float, float | None]:
    """`PPL = exp(m)`, `m` the mean of `window_nll [windows]` in nats, and by the delta method `PPL · se(m)`.

    The windows are taken as independent, which neighbouring windows of one text are not quite: the error is a little
    too small.
    """
    mean, error = mean_with_error(window_nll)
    value = math.exp(mean) if mean < 700 else math.inf
    return value, None if error is None or not math.isfinite(value) else value * error
