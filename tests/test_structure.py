"""The tree is as docs/design.md draws it: what is shared lies in edgefl/ alone, a method's name in methods/ alone."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefl.methods import DEFAULT, METHODS
from edgefl_exporter.methods import METHODS as EXPORTED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SOURCES = ("edgefl", "exporter/edgefl_exporter", "devices/python/edgefl_device", "broker/edgefl_broker")
METHOD_NAMES = {*METHODS, *EXPORTED} - {DEFAULT}


def modules() -> list[Path]:
    return [path for source in SOURCES for path in sorted((ROOT / source).rglob("*.py"))]


def test_what_lies_in_edgefl_is_what_the_contract_says_all_share() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (shared,) = (c["source_modules"] for c in contracts if c["name"] == "what all share knows of no room")
    files = {path.stem for path in (ROOT / "edgefl").glob("*.py")} - {"__init__", "__main__"}
    assert files == {name.removeprefix("edgefl.") for name in shared} - {"trust"}


def test_the_page_draws_every_file_and_room_of_edgefl() -> None:
    page = (ROOT / "docs" / "design.md").read_text()
    tree = page[page.index("## Where things are") : page.index("## Decisions")]
    for path in (ROOT / "edgefl").iterdir():
        if path.is_dir() and (path / "__init__.py").exists():
            assert f"{path.name}/" in tree, path.name
        elif path.suffix == ".py" and not path.stem.startswith("__"):
            assert path.name in tree, path.name


def words(source: str) -> Iterator[tuple[int, str]]:
    """Names, attributes and texts of a module, but no comments and docstrings."""
    tree = ast.parse(source)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def named(source: str) -> list[tuple[int, str]]:
    """Where a method is named."""
    pattern = re.compile(rf"(?<![a-z])({'|'.join(sorted(METHOD_NAMES, key=len, reverse=True))})(?![a-z])", re.I)
    return [(line, word) for line, word in words(source) if pattern.search(word)]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_method_is_named_outside_methods(path: Path) -> None:
    inside = {part.name for part in path.parents}
    if "methods" in inside:
        return
    if "zoo" in inside:  # some of its models are those of a method's paper, and say so
        return
    assert named(path.read_text()) == []


def test_a_name_would_be_found() -> None:
    assert named("from edgefl.methods.codream import CoDream\n") == [
        (1, "edgefl.methods.codream"),
        (1, "CoDream"),
    ]
    assert named('"""About FedProx."""\nx = "scaffold"  # SCAFFOLD\n') == [(2, "scaffold")]
