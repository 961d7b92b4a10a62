"""Gradients by PyTorch against gradients by onnx-ad, which differentiates the ONNX graph and knows no PyTorch."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from edgefl.bundle import Bundle, write
from edgefl_exporter import export

pytest.importorskip("onnx_ad", reason="onnx-ad is missing")

from third_opinion import Refused, disagreement


def test_it_agrees(bundles: list[Bundle]) -> None:
    """On the two bundles without a Loop, which it cannot differentiate."""
    assert [disagreement(bundle) < 1e-4 for bundle in bundles[:2]] == [True, True]


def test_a_wrong_gradient_is_found(bundles: list[Bundle], tmp_path: Path) -> None:
    """The last bias goes up its gradient instead of down: off by twice the gradient."""
    digits = bundles[0]
    programs = {name: digits.bytes_of(program.file) for name, program in digits.manifest.programs.items()}
    train = onnx.load_from_string(programs["train"])
    (step,) = (node for node in train.graph.node if "next.8.bias" in node.output)
    assert step.op_type == "Sub"
    step.op_type = "Add"
    programs["train"] = train.SerializeToString()
    golden = {name: digits.golden(name) for name in programs}
    wrong = write(tmp_path / "w.bundle", digits.manifest, weights=digits.weights(), programs=programs, golden=golden)
    assert disagreement(wrong) == pytest.approx(2.0, rel=1e-3)


def test_it_says_what_it_cannot_differentiate(tmp_path: Path) -> None:
    depthwise = nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Flatten(), nn.Linear(8, 3))
    bundle = export(depthwise, torch.zeros(1, 2, 4, 4), out=tmp_path / "d.bundle", name="d", programs=("train",))
    with pytest.raises(Refused, match="a grouped Conv is not differentiated with respect to its weight"):
        disagreement(bundle)
