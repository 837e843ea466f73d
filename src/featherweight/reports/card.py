"""The model card of an output, drawn from its ledger."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, StrictUndefined

from featherweight.reports.ledger import Told

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
{% if ledger.total.linear_bits -%}
| compressed weights | {{ "%.3f"|format(ledger.total.linear_bits) }} bits each, everything stored counted |
{% endif -%}
{% if ledger.kv_cache is defined -%}
| cache in code | keys {{ "%.2f"|format(ledger.kv_cache.key_bits) }} bits a value, values \
{{ "%.2f"|format(ledger.kv_cache.value_bits) }}; {{ "{:,.0f}".format(ledger.kv_cache.token_bytes) }} bytes a token instead of \
{{ "{:,}".format(ledger.kv_cache.exact_token_bytes) }} |
{% endif -%}
| whole model | {{ "%.3f"|format(ledger.total.model_bits) }} bits a weight, embeddings included |
| weight files | {{ "{:,}".format(ledger.total.file_bytes) }} bytes |
| original tensors | {{ "{:,}".format(ledger.total.original_bytes) }} bytes |
{% if ledger.calibration -%}
| calibration tokens | sha256 `{{ ledger.calibration.sha256 }}` |
{% endif -%}
| proof | reloaded logits within {{ "%.2e"|format(ledger.proof.largest_difference) }} of those in memory \
(bound {{ "%.0e"|format(ledger.proof.bound) }}, {{ ledger.proof.dtype }}) |

{% if quality -%}
## Quality

| text | | |
|---|---|---|
{% for line in quality -%}
| {{ line.text }} | {{ line.name.replace("_", " ") }} | {{ line.value }} |
{% endfor %}
{% for protocol in quality|map(attribute="protocol")|unique -%}
* {{ protocol }}
{% endfor %}
{% endif -%}
```python
import featherweight
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER")
```

`recipe.yaml` is what was asked for, `plan.json` the table row by row, `ledger.json` everything that was measured, and
why each tensor that was left alone was left alone. `fw verify FOLDER` repeats the proof, `fw report FOLDER` draws where
the error, the bits and the time went.
"""


def write_card(folder: Path) -> None:
    """Write `README.md` into an output folder, from its ledger and, once it was scored, its evaluation."""
    told = Told.of(folder)
    template = Environment(undefined=StrictUndefined, autoescape=False).from_string(_CARD)
    text = template.render(ledger=told.ledger, quality=told.quality_lines())
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")
