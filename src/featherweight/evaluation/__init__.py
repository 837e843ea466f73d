"""Measurements that carry their protocol: perplexity, divergence, per-linear error, generated text."""

from featherweight.evaluation.divergence import compare
from featherweight.evaluation.evaluate import evaluate
from featherweight.evaluation.generate import generate_text
from featherweight.evaluation.perplexity import perplexity, token_losses
from featherweight.evaluation.protocol import Measurement, MeasurementTable, Protocol
from featherweight.evaluation.reference import StoredReference, store_reference

__all__ = [
    "Measurement",
    "MeasurementTable",
    "Protocol",
    "StoredReference",
    "compare",
    "evaluate",
    "generate_text",
    "perplexity",
    "store_reference",
    "token_losses",
]
