"""HTML from values. Whatever is no `Markup` is text, and escaped: names of devices and runs are strangers' words."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_VOID = ("img",)


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(content: object) -> str:
    return content if isinstance(content, Markup) else html.escape(str(content))


def joined(parts: Iterable[object]) -> Markup:
    """Markup and texts one after the other."""
    return Markup("".join(escaped(part) for part in parts))


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """An element. An underscore at the end of an attribute's name is left out (`class_`), others are hyphens; None and
    False leave the attribute out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    words = "".join(
        f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'
        for key, value in given.items()
        if value is not None and value is not False
    )
    end = "" if name in _VOID else f"{joined(content)}</{name}>"
    return Markup(f"<{name}{words}>{end}")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, more: str = "") -> Markup:
    """A table whose first column names its rows. `more`: what is said below of rows that are not shown.

    A cell that begins with <td is one already.
    """
    cells = (tag("tr", tag("th", row[0], scope="row"), *(_cell(cell) for cell in row[1:])) for row in rows)
    top = tag("thead", tag("tr", *(tag("th", title, scope="col") for title in head)))
    inside = tag("table", top, tag("tbody", *cells))
    return joined((tag("div", inside, class_="scroll", tabindex="0"), tag("p", more, class_="more") if more else ""))


def _cell(cell: object) -> Markup:
    return cell if isinstance(cell, Markup) and cell.startswith("<td") else tag("td", cell)


def bar(share: float) -> Markup:
    """A bar of 0 to 1 of its cell's width."""
    inside = tag("rect", width=f"{100 * min(1.0, max(0.0, share)):.1f}", height="8")
    return tag("svg", inside, class_="bar", viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true")


def shaded(count: object, share: float, *, title: str | None = None) -> Markup:
    """A cell that is the darker, the nearer `share` is to 1."""
    return tag("td", count, class_=f"h{min(9, max(0, round(9 * share)))}", title=title)
