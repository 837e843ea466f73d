"""The model card of an output, drawn from its ledger."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, StrictUndefined

_CARD = """\
---
library_name: transformers
tags: [featherweight, compressed]
base_model: {{ ledger.model.name }}
---
# {{ ledger.model.name }}, compressed by {{ ledger.recipe.name }}

{{ ledger.recipe.description }}

| | |
|---|---|
| compressed weights | {{ "%.3f"|format(ledger.total.linear_bits) }} bits each, everything stored counted |
| whole model | {{ "%.3f"|format(ledger.total.model_bits) }} bits a weight, embeddings included |
| weight files | {{ "{:,}".format(ledger.total.file_bytes) }} bytes |
| original tensors | {{ "{:,}".format(ledger.total.original_bytes) }} bytes |
{% if ledger.calibration -%}
| calibration tokens | sha256 `{{ ledger.calibration.sha256 }}` |
{% endif -%}
| proof | reloaded logits within {{ "%.2e"|format(ledger.proof.largest_difference) }} of those in memory \
(bound {{ "%.0e"|format(ledger.proof.bound) }}, {{ ledger.proof.dtype }}) |

```python
import featherweight
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER")
```

`recipe.yaml` is what was asked for, `plan.json` the table row by row, `ledger.json` everything that was measured, and
why each tensor that was left alone was left alone. `fw verify FOLDER` repeats the proof.
"""


def write_card(folder: Path) -> None:
    """Write `README.md` into an output folder."""
    ledger = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
    text = Environment(undefined=StrictUndefined, autoescape=False).from_string(_CARD).render(ledger=ledger)
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")
