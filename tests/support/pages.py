"""A page of HTML as a reader sees it: tags, texts, tables, and the values inside it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """`tags` with their attributes; `tables` as rows of cells, the titles first."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self._texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("meta", "img"):
            return
        self._open.append(tag)
        self._texts.append((tag, ""))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        for i in reversed(range(len(self._texts))):
            if self._open and self._texts[i][0] == self._open[-1]:
                self._texts[i] = (self._texts[i][0], self._texts[i][1] + data)
                break
        if "th" in self._open or "td" in self._open:
            self.tables[-1][-1][-1] += data

    def all(self, tag: str) -> list[str]:
        """The texts directly in elements of a kind."""
        return [text for inside, text in self._texts if inside == tag and text.strip()]

    def rows(self, title: str) -> list[list[str]]:
        """The table whose first title this is, its titles first."""
        return next(table for table in self.tables if table[0][0] == title)

    @property
    def data(self) -> Any:
        """The values that the page's script draws."""
        (text,) = [text for text in self.all("script") if text.startswith("{")]
        return json.loads(text)
