"""A device's life in a run, frame by frame: tests/vectors/session.json, played by the device in Python."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefl import protocol
from edgefl_device.data.dataset import Dataset

VECTORS = Path(__file__).parents[1] / "vectors"
GOLDEN: dict[str, Any] = json.loads((VECTORS / "session.json").read_text())


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(VECTORS / "make_session.py"))


def test_every_step_comes_out_as_it_says(script: dict[str, Any], tmp_path: Path) -> None:
    x, y = (np.array(GOLDEN["data"][n]["values"], np.float32).reshape(GOLDEN["data"][n]["shape"]) for n in "xy")
    device = script["Device"](tmp_path, GOLDEN["run"], GOLDEN["device"], Dataset(x, y), GOLDEN["chunk_bytes"])
    for step in GOLDEN["steps"]:
        assert device.do(step) == step["out"], step["about"]


def test_the_vectors_are_what_their_script_makes(script: dict[str, Any]) -> None:
    assert script["text"]() == (VECTORS / "session.json").read_text()


def test_every_message_travels() -> None:
    payloads = [step for step in GOLDEN["steps"] if "payload" in step]
    payloads += [out for step in GOLDEN["steps"] for out in step["out"] if "payload" in out]
    assert {item["message"]["type"] for item in payloads} == {
        kind.__struct_config__.tag for kind in protocol.Message.__args__
    }


def test_the_second_reply_by_hand() -> None:
    """x is the first two unit vectors, y = [1, 2], w = 1: err = [0, -1], gradient [0, -1], in the first two places. The
    class's momentum is 0.5 and the first round left a moment of [-1, -2]: w = 1 - 0.5 (0.5 [-1, -2] + [0, -1])."""
    offers = [out for s in GOLDEN["steps"] for out in s["out"] if out.get("message", {}).get("type") == "offer"]
    message, body = protocol.decode(bytes.fromhex(offers[-1]["payload"]))
    assert isinstance(message, protocol.Offer) and message.round == 1
    assert message.metrics == {"train.loss": 0.5, "train.total": 1.0, "train.examples": 2.0}
    w = protocol.bytes_to_tensors(bytes(body), "the reply")["w"]
    assert w[:3].tolist() == [1.25, 2.0, 1.0] and w.shape == (300,)
