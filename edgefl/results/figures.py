"""Figures and pictures as <img> elements that hold them: a report needs no other file."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

from edgefl.errors import InputError


def empty(title: str, x: str) -> tuple[Any, Any]:
    """An empty figure in the report's look. Raises InputError without the matplotlib package."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise InputError("the report needs the matplotlib package", hint="pip install 'edgefl[aggregator]'") from error
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes: Any = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_title(title, loc="left", fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def percent(axes: Any) -> None:
    """Show the values of the y axis, 0 to 1, as percentages."""
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def svg(figure: Any, what: str) -> str:
    """The figure as an <img> that holds it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    data = base64.b64encode(picture.getvalue()).decode()
    return f'<img alt="{html.escape(what)}" src="data:image/svg+xml;base64,{data}">'


def png(path: Path, what: str) -> str:
    """The picture as a paragraph with an <img> that holds it; nothing where there is no such file."""
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{html.escape(what)}" src="data:image/png;base64,{data}" style="max-width: 100%"></p>'
