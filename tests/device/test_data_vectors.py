"""A device's own data as every language takes them: tests/vectors/data.json, fitted by the device in Python."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

VECTORS = Path(__file__).parents[1] / "vectors"
GOLDEN: list[dict[str, Any]] = json.loads((VECTORS / "data.json").read_text())


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(VECTORS / "make_data.py"))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["about"])
def test_a_case_comes_out_as_it_says(script: dict[str, Any], case: dict[str, Any]) -> None:
    want = {key: value for key, value in case.items() if key in ("fed", "note", "refused")}
    assert script["play"](case) == want


def test_the_vectors_are_what_their_script_makes(script: dict[str, Any]) -> None:
    assert script["text"]() == (VECTORS / "data.json").read_text()
