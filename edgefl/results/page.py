"""A page that holds everything: its style, its script and the values that the script draws. It loads nothing.

A content security policy says so to the browser too: this style and this script by their hashes, and pictures inside.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from string import Template

from edgefl.results.markup import Markup, escaped


def page(title: str, body: Markup, data: object) -> bytes:
    """An HTML file. `data`: plain values, for web/charts.mjs."""
    style, script = (_text(name) for name in ("page.css", "charts.mjs"))
    filled = Template(_text("page.html")).substitute(
        title=escaped(title),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=json_inside(data),
        body=body,
    )
    return filled.encode(errors="replace")  # JSON of a file may hold half a character


def json_inside(value: object) -> str:
    """JSON that ends no element and begins none, whatever is in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _text(name: str) -> str:
    return (files("edgefl.results") / "web" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
