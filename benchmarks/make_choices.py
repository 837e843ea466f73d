"""Write the shipped multiple-choice set: a passage of the held-out text, its true continuation, and three from elsewhere.

    python benchmarks/make_choices.py          # rewrites src/featherweight/assets/continuation.jsonl, bit for bit

Distractors come from the same document, at least 2000 words away, and are as long as the true continuation.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

ASSETS = Path(__file__).parents[1] / "src" / "featherweight" / "assets"
CONTEXT, CHOICE, QUESTIONS, APART = 40, 12, 120, 2000


def main() -> None:
    draw = random.Random(0)
    documents = [text.split() for text in (ASSETS / "heldout.txt").read_text(encoding="utf-8").split("\n\n\n")]
    documents = [words for words in documents if len(words) > 4 * APART]
    lines = []
    for number in range(QUESTIONS):
        words = documents[number % len(documents)]
        start = draw.randrange(len(words) - CONTEXT - CHOICE)
        place = start + CONTEXT
        starts = [place]
        while len(starts) < 4:
            other = draw.randrange(len(words) - CHOICE)
            if all(abs(other - taken) >= APART for taken in starts):
                starts.append(other)
        draw.shuffle(starts)
        question = {
            "context": " ".join(words[start:place]),
            "choices": [" ".join(words[begin : begin + CHOICE]) for begin in starts],
            "answer": starts.index(place),
        }
        lines.append(json.dumps(question, ensure_ascii=False))
    (ASSETS / "continuation.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
