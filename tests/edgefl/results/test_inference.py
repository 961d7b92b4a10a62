"""A model that predicts says itself what it takes and what its answers mean."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from predicting import WEIGHTS, write_predicting

from edgefl.results.inference import write_model

PAGE = Path(__file__).parents[3] / "docs" / "python.md"
ABOUT = {"run": "lamps-1", "method": "fedavg", "accuracy": "0.9"}


def metadata(path: Path) -> dict[str, str]:
    return {one.key: one.value for one in onnx.load(path).metadata_props}


def test_its_metadata_are_the_run_and_the_data_contract(tmp_path: Path) -> None:
    write_model(write_predicting(tmp_path / "b", names=("dark", "rot", "grün")), {"w": WEIGHTS}, tmp_path / "m", ABOUT)
    found = metadata(tmp_path / "m")
    assert {name: found[name] for name in ABOUT} == ABOUT
    assert found["classes"] == '["dark", "rot", "grün"]'
    assert json.loads(found["features"]) == {
        "x": {
            "shape": [2, 1, 1],
            "dtype": "float32",
            "range": [0, 1],
            "mean": [[[0.5]], [[0.25]]],
            "std": [[[0.5]], [[0.25]]],
        }
    }


def test_classes_without_names_are_called_by_their_numbers(tmp_path: Path) -> None:
    write_model(write_predicting(tmp_path / "b", names=()), {"w": WEIGHTS}, tmp_path / "m", {})
    assert metadata(tmp_path / "m")["classes"] == '["0", "1", "2"]'


def test_the_page_s_six_lines_predict_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sample,) = re.findall(r"^## Predict\n.*?((?:^    .*\n)+)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(sample.splitlines()) == 6
    write_model(write_predicting(tmp_path / "b"), {"w": WEIGHTS}, tmp_path / "model.onnx", ABOUT)
    lamps = np.array([[0, 1], [0, 0], [1, 0]], np.float32).reshape(3, 2, 1, 1)
    np.savez(tmp_path / "test.npz", x=lamps)
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(re.sub("^    ", "", sample, flags=re.MULTILINE), {})
    assert said.getvalue() == "['green', 'dark', 'red']\n"
