"""Pages from templates: self-contained, for any width, dark and light, readable without script."""

from __future__ import annotations

from typing import Any


def render(template: str, values: dict[str, Any]) -> str:
    """A template of this package, filled; a name it asks for and does not get is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("featherweight", "reports/templates")
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, trim_blocks=True)
    return environment.get_template(template).render(values)
