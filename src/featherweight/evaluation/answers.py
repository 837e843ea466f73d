"""How right a generated answer is, from 0 to 1: LongBench's measures (arXiv:2308.14508, its `metrics.py`)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from featherweight.errors import FeatherweightError


def f1(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """Harmonic mean of precision and recall of words; without case, punctuation and articles. SQuAD's."""
    return _harmonic(*_shared(_plain_words(answer), _plain_words(truth)))


def rouge_l(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """The same of the longest common subsequence of lower-case words; as rouge-score's rougeL, without stemming."""
    from_words, of_words = (re.findall(r"[a-z0-9]+", text.lower()) for text in (answer, truth))
    common = int(_rapidfuzz().distance.LCSseq.similarity(from_words, of_words))
    return _harmonic(common, len(from_words), len(of_words))


def classes(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """1 / how many classes the answer names, if the right one is among them; names inside the right name do not count."""
    named = [each for each in classes if each in answer and (each == truth or each not in truth)]
    return 1 / len(named) if truth in named else 0.0


def count(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """Share of the numbers in the answer that are right."""
    numbers = re.findall(r"\d+", answer)
    return sum(number == truth for number in numbers) / len(numbers) if numbers else 0.0


def retrieval(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """The same, right being the number in "Paragraph 7"."""
    found = re.search(r"Paragraph (\d+)", truth)
    return count(answer, found.group(1) if found else truth)


def code(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """Similarity of the first line that is code to the right line: `1 − insertions and deletions / both lengths`."""
    lines = answer.lstrip("\n").split("\n")
    line = next((each for each in lines if not any(mark in each for mark in ("`", "#", "//"))), "")
    return float(_rapidfuzz().fuzz.ratio(line, truth)) / 100


METRICS: dict[str, Callable[[str, str, Sequence[str]], float]] = {
    "f1": f1, "rouge_l": rouge_l, "classes": classes, "count": count, "retrieval": retrieval, "code": code
}  # fmt: skip


def score_answer(metric: str, answer: str, truths: Sequence[str], all_classes: Sequence[str] = ()) -> float:
    """The best over the right answers.

    Raises:
        FeatherweightError: rapidfuzz is not installed, which "rouge_l" and "code" need.
    """
    return max(METRICS[metric](answer, truth, all_classes) for truth in truths)


def _plain_words(text: str) -> list[str]:
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _shared(one: list[str], other: list[str]) -> tuple[int, int, int]:
    return sum((Counter(one) & Counter(other)).values()), len(one), len(other)


def _harmonic(common: int, one: int, other: int) -> float:
    return 2 * common / (one + other) if common else 0.0


def _rapidfuzz() -> Any:
    try:
        import rapidfuzz
        import rapidfuzz.distance
    except ImportError:
        raise FeatherweightError(
            "ROUGE-L and the similarity of code need rapidfuzz", found="not installed", expected="rapidfuzz",
            fix="pip install 'featherweight[longbench]'",
        ) from None  # fmt: skip
    return rapidfuzz
