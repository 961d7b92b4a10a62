"""Models that cannot become programs: one clear line each, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from edgefl.errors import EdgeflError, LoweringError, ParityError
from edgefl_exporter import export


class Apply(nn.Module):
    """A linear head after any function of x."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], width: int = 8) -> None:
        super().__init__()
        self.body, self.function, self.head = nn.Linear(8, 8), function, nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.function(self.body(x)))


REFUSED: dict[str, tuple[object, str]] = {
    "not a module": (42, "int is not a torch.nn.Module"),
    "a class": (nn.Linear, "Linear is not a torch.nn.Module"),
    "an operator without translation": (
        nn.Sequential(nn.Linear(8, 8), Apply(torch.special.i0)),
        r"operator aten\.i0\.default \(prims\.bessel_i0\.default\) in module '1' \(tests/.*refusals.py:\d+\)",
    ),
    "complex numbers": (
        nn.Sequential(nn.Linear(8, 8), Apply(lambda x: torch.fft.fft(x).abs())),
        r"operator aten\._fft_\w+\.default in module '1' \(tests/.*refusals.py:\d+\)",
    ),
    "random numbers that a program cannot draw": (
        nn.Sequential(nn.Linear(8, 8), Apply(lambda x: x[:, torch.randperm(8)])),
        r"operator aten\.randperm\.default in module '1'",
    ),
    "one number, not logits": (
        nn.Sequential(nn.Linear(8, 1), nn.Flatten(0)),
        r"\[4\]; cross_entropy needs float32 logits",
    ),
    "a path that depends on the batch": (
        Apply(lambda x: x if x.shape[0] > 16 else x * 2),
        "depends on the batch size",
    ),
    "a path that depends on values": (Apply(lambda x: x if x.sum() > 0 else -x), "cannot be traced"),
    "not finite": (Apply(lambda x: x / 0), "not finite"),
    "double": (nn.Linear(8, 3).double(), "parameters must be float32"),
    "wrong shape": (nn.Linear(9, 3), r"fails on an input of shape \[4, 8\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_says_what_and_writes_nothing(name: str, tmp_path: Path) -> None:
    model, message = REFUSED[name]
    with pytest.raises(LoweringError, match=message) as caught:
        export(model, torch.zeros(2, 8), out=tmp_path / "m.bundle", name="m", programs=("train",))
    assert "\n" not in caught.value.message and caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_dictionary_of_outputs_is_refused(tmp_path: Path) -> None:
    class Named(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": x}

    with pytest.raises(LoweringError, match="returns dict"):
        export(Named(), torch.zeros(2, 8), out=tmp_path / "m.bundle", name="m")


@pytest.mark.parametrize("program", ["train", "evaluate", "predict"])
def test_a_program_that_computes_something_else_is_caught(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sign of one subtraction, or of the last addition, is turned in the finished file."""
    import sys

    from edgefl_exporter.lowering import lower

    def wrong(*args: object, **kwargs: object) -> bytes:
        model = onnx.load_from_string(lower(*args, **kwargs))  # type: ignore[arg-type]
        swaps = {"Sub": "Add", "Gemm": "Gemm"}
        node = [n for n in model.graph.node if n.op_type in swaps][-1]
        if node.op_type == "Gemm":
            next(a for a in node.attribute if a.name == "alpha").f = -1.0
        else:
            node.op_type = swaps[node.op_type]
        return model.SerializeToString()

    monkeypatch.setattr(sys.modules["edgefl_exporter.export"], "lower", wrong)
    torch.manual_seed(0)
    with pytest.raises(ParityError, match=f"program '{program}', check 'batches': .* differs from PyTorch"):
        export(nn.Linear(8, 3), torch.zeros(2, 8), out=tmp_path / "m.bundle", name="m", programs=(program,))
    assert list(tmp_path.iterdir()) == []


def test_a_refused_export_leaves_an_older_bundle_alone(tmp_path: Path) -> None:
    out = tmp_path / "m.bundle"
    old = export(nn.Linear(8, 3), torch.zeros(2, 8), out=out, name="m", programs=("predict",))
    with pytest.raises(EdgeflError):
        export(nn.Sequential(nn.RReLU(), nn.Linear(8, 3)), torch.zeros(2, 8), out=out, name="m", programs=("train",))
    from edgefl import bundle

    assert bundle.read(out).sha256 == old.sha256
