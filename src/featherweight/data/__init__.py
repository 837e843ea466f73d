"""Corpora and windows, for calibration and evaluation alike."""

from featherweight.data.corpora import load_corpus
from featherweight.data.corpus import Corpus
from featherweight.data.windows import Windows, calibration_windows, evaluation_windows

__all__ = ["Corpus", "Windows", "calibration_windows", "evaluation_windows", "load_corpus"]
