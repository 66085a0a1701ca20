"""Writes a page: a template, its style and its script in one file, with a policy that lets nothing else in.

Called by `page` and `compare`. Texts are strangers': every one is escaped by jinja2, and data for the script is JSON in
which no tag can end.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from embexp.durable import write_whole
from embexp.reporting.tables import Listing, Table

HERE = Path(__file__).parent


def write(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Fill a template (report or compare) and write it whole; returns the path."""
    write_whole(path, render(template, content))
    return path


def render(template: str, content: Mapping[str, Any]) -> str:
    """The page as HTML. Every key that the template reads must be there."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"strong": strong, "data": data, "sides": sides}
    environment.tests |= {
        "table": lambda block: isinstance(block, Table),
        "listing": lambda block: isinstance(block, Listing),
    }
    style, script = (Markup((HERE / name).read_text(encoding="utf-8")) for name in ("style.css", "table.js"))
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(f"{template}.html").render(style=style, script=script, policy=policy, **content)


def sides(table: Table) -> list[str]:
    """The class of each column's cells: words stand to the left, numbers to the right, as they do without one."""
    columns = [[line[place] for line in table.lines] for place in range(len(table.header))]
    return ["left" if any(cell[:1].isalpha() for cell in cells) else "" for cells in columns]


def strong(text: str) -> Markup:
    """A sentence of a report with its **words** stressed."""
    parts = [escape(part) for part in text.replace("->", "→").split("**")]
    if len(parts) % 2 == 0:  # an odd star is a star
        return escape(text)
    return Markup("").join(Markup("<strong>{}</strong>").format(p) if i % 2 else p for i, p in enumerate(parts))


def data(value: Any) -> Markup:
    """Plain values as JSON that can stand in a <script>: no character in it can open or end a tag."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def finite(value: float | None, *, digits: int) -> float | None:
    """Rounded for a table; null where it is no number."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
