"""Tasks as every language carries them out: tests/vectors/tasks.json, played by the device in Python."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefl.method import Keep, Task
from edgefl.random_numbers import order_of, seed_of

VECTORS = Path(__file__).parents[1] / "vectors"
GOLDEN: dict[str, Any] = json.loads((VECTORS / "tasks.json").read_text())
STORIES = [pytest.param(told, id=told["name"]) for told in GOLDEN["stories"]]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(VECTORS / "make_tasks.py"))


@pytest.mark.parametrize("told", STORIES)
def test_a_story_ends_as_it_says(script: dict[str, Any], told: dict[str, Any]) -> None:
    answers = ("reply", "changed", "private", "refused")
    question = told | {"asks": [{k: v for k, v in one.items() if k not in answers} for one in told["asks"]]}
    came = script["play"](question, GOLDEN["bundles"][told["bundle"]])
    for one, outcome in zip(told["asks"], came, strict=True):
        want = {k: v for k, v in one.items() if k in answers}
        if "tolerance" in told:
            for tensors in (want["reply"]["tensors"], outcome["reply"]["tensors"]):
                for tensor in tensors.values():
                    tensor["values"] = np.array(tensor["values"])
            shown = [reply["reply"]["tensors"].pop("shown") for reply in (want, outcome)]
            np.testing.assert_allclose(shown[0]["values"], shown[1]["values"], rtol=0, atol=told["tolerance"])
        assert outcome == want


def test_the_vectors_are_what_their_script_makes(script: dict[str, Any]) -> None:
    assert script["text"]() == (VECTORS / "tasks.json").read_text()


def test_every_word_of_a_task_is_in_some_story() -> None:
    tasks = [task for told in GOLDEN["stories"] for one in told["asks"] for task in one["tasks"]]
    assert {name for task in tasks for name in task} == set(Task.__struct_fields__)
    assert {name for task in tasks for name in task.get("keep", {})} == set(Keep.__struct_fields__)
    assert {task.get("feed") for task in tasks} >= {None, "test", "announced", "noise", "kept:dreams"}


def by_name(name: str) -> Any:
    return next(told for told in GOLDEN["stories"] if told["name"] == name)["asks"]


def test_some_of_them_by_hand() -> None:
    # err = [1, 10] - [1, 2] = [0, 8]; loss = 64/2; gradient = 2/2 err = [0, 8]; w = [1, 10] - 0.5 [0, 8] = [1, 6]
    first = by_name("one epoch, the whole feed in one batch")[0]["reply"]
    assert first["tensors"]["w"]["values"] == [1, 6] and first["metrics"]["train.loss"] == 32
    assert by_name("a delta to what was loaded")[0]["reply"]["tensors"]["w"]["values"] == [0, -4]
    # Of the classes's 2 and the task's 4 nothing is left: 0.25, and the class's momentum of 0.5.
    # moment = [0, 8], w = 8; then moment = 0.5 * 8 + 6 = 10, w = 8 - 2.5
    own = by_name("a device's own settings count more than its class's, these more than the task's")[0]["reply"]
    assert own["tensors"]["w"]["values"] == [1, 5.5]
    # Digits show their order: that of the last epoch, the second.
    digits = by_name("the order of a seed")[0]["reply"]["tensors"]["predicted"]["values"]
    assert digits == order_of(7, seed=42, device="pi-1", epoch=1).tolist()
    # 6 examples in batches of 4: of the second, two rows are there and two fill it up. The first features 1, 2, 3, 4
    # and 6, 8 are normalised to 2, 6, 10, 14 and 22, 30: means 8 and 26, and 14 for all six.
    counted = by_name("a fixed batch is filled up, and a program's own seed")[0]["reply"]["metrics"]
    assert counted["count.total"] == 2 * 6 and counted["count.examples"] == 6 and counted["count.first"] == 14
    assert counted["count.drawn"] == seed_of(3, "pi-1") % 1000
    # uint8 0 and 255 are 0 and 1, and (0 - 0.5) / 0.25 = -2; the shift is [0.25, -1].
    pixels = by_name("pixels are divided and normalised")[0]["reply"]["tensors"]["shown"]["values"]
    assert pixels == [2.25, -3, -1.75, -3, -1.75, 1]
