"""Models that cannot become programs: one clear line each, and nothing is written."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from edgefl.errors import EdgeflError, LoweringError, ParityError
from edgefl.trust import onnx_walk
from edgefl.trust.onnx_walk import OPERATORS, OPSET
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


def on_a_grid(x: torch.Tensor) -> torch.Tensor:
    grid = torch.zeros(1, 2, 4, 2).expand(x.shape[0], -1, -1, -1)
    return nn.functional.grid_sample(x.reshape(-1, 1, 2, 4), grid, align_corners=True).flatten(1)


# What a stranger may write -> the operator that the message names, and a word of the hint.
UNLOWERED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str, str]] = {
    "fourier transform": (lambda x: torch.fft.rfft(x).abs(), "_fft_r2c", "convolutions"),
    "complex numbers": (lambda x: torch.view_as_complex(x.reshape(-1, 4, 2)).abs(), "view_as_complex", "two real"),
    "multinomial": (lambda x: x + torch.multinomial(x.softmax(1), 8), "multinomial", "torch.rand"),
    "permutation": (lambda x: x[:, torch.randperm(8)], "randperm", "shuffle the data"),
    "random slopes": (lambda x: nn.functional.rrelu(x, training=True), "rrelu", "LeakyReLU"),
    "eigenvalues": (lambda x: torch.linalg.eigvalsh(x.unsqueeze(2) * x.unsqueeze(1)), "linalg", "unroll"),
    "solver": (lambda x: torch.linalg.solve(torch.eye(8) + x.unsqueeze(2) * 0, x), "linalg", "unroll"),
    "bessel function": (torch.special.i0, "i0", "torch.exp"),
    "gamma function": (lambda x: torch.lgamma(x.abs() + 1), "gamma", "torch.exp"),
    "sampling on a grid": (on_a_grid, "grid_sampl", "Upsample"),
}


@pytest.mark.parametrize("name", UNLOWERED)
def test_an_operator_is_named_with_module_line_and_a_hint(name: str, tmp_path: Path) -> None:
    function, target, hint = UNLOWERED[name]
    net = nn.Sequential(nn.Linear(8, 8), Apply(function, width=5 if name == "fourier transform" else 8))
    net = net if name != "complex numbers" else nn.Sequential(nn.Linear(8, 8), Apply(function, width=4))
    with pytest.raises(LoweringError) as caught:
        export(net, torch.zeros(2, 8), out=tmp_path / "m.bundle", name="m", programs=("train",))
    assert target in caught.value.message and "in module '1' (" in caught.value.message
    assert "test_refusals.py:" in caught.value.message
    assert caught.value.hint and hint in caught.value.hint


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lengths = torch.full((x.shape[0],), 8)
        packed = nn.utils.rnn.pack_padded_sequence(x.unsqueeze(2), lengths, batch_first=True)
        return self.head(self.cell(packed)[1][0][-1])


class Moody(nn.Module):
    """Python's own random numbers, which nobody can repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x * random.random())


class Stepped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.heaviside(self.head(x), torch.ones(()))


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        (Packed(), r"packed sequences \(.*test_refusals.py:\d+\) cannot be lowered", "padded batch"),
        (Moody(), "from the same inputs, and differently", "torch.rand"),
        (Stepped(), "PyTorch cannot differentiate the model: .*heaviside", "detach"),
        (Apply(lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -8, 7)), "fake_quantize", "float model"),
    ],
)
def test_what_else_a_stranger_may_do(model: nn.Module, message: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=message) as caught:
        export(model, torch.zeros(2, 8), out=tmp_path / "m.bundle", name="m", programs=("train",))
    assert caught.value.hint and hint in caught.value.hint


def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2 if x.mean() > 0 else x


def number(x: torch.Tensor) -> torch.Tensor:
    return x * float(x.detach().abs().max())


@pytest.mark.parametrize("function", [halved, number])
def test_control_flow_on_values_is_named_by_its_line(
    function: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    with pytest.raises(LoweringError, match="traced") as caught:
        export(Apply(function), torch.zeros(2, 8), out=tmp_path / "m.bundle", name="m", programs=("train",))
    assert f"test_refusals.py:{function.__code__.co_firstlineno + 1}" in caught.value.message
    assert "\n" not in caught.value.message


def test_an_operator_of_the_backward_pass_is_named_by_its_forward_line(tmp_path: Path) -> None:
    """The forward pass of a trilinear grid sample translates, its backward pass does not; likewise a 3-D upsample."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv3d(1, 1, 1), nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            y = nn.functional.max_pool3d(y, 2, ceil_mode=True)
            return self.head(nn.functional.pad(y, (0, 3, 0, 3, 0, 3)).flatten(1))

    with pytest.raises(LoweringError) as caught:
        export(Deep(), torch.zeros(2, 1, 2, 2, 2), out=tmp_path / "m.bundle", name="m", programs=("train",))
    line = Deep.forward.__code__.co_firstlineno + 2
    assert "max_pool3d_with_indices_backward" in caught.value.message
    assert f"test_refusals.py:{line})" in caught.value.message


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

    from edgefl_exporter.lowering.lower import lower

    def wrong(*args: object, **kwargs: object) -> bytes:
        model = onnx.load_from_string(lower(*args, **kwargs))  # type: ignore[arg-type]
        swaps = {"Sub": "Add", "Gemm": "Gemm"}
        node = [n for n in model.graph.node if n.op_type in swaps][-1]
        if node.op_type == "Gemm":
            next(a for a in node.attribute if a.name == "alpha").f = -1.0
        else:
            node.op_type = swaps[node.op_type]
        return model.SerializeToString()

    monkeypatch.setattr(sys.modules["edgefl_exporter.build"], "lower", wrong)
    torch.manual_seed(0)
    with pytest.raises(ParityError, match=f"program '{program}', check 'batches': .* differs from PyTorch"):
        export(nn.Linear(8, 3), torch.zeros(2, 8), out=tmp_path / "m.bundle", name="m", programs=(program,))
    assert list(tmp_path.iterdir()) == []


def test_what_a_device_would_refuse_is_refused_at_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = {"": (OPSET, OPERATORS - {"Gemm"})}
    monkeypatch.setattr(onnx_walk, "ENGINES", {"portable": without})
    with pytest.raises(LoweringError, match="operator 'Gemm', which is not among those that are allowed"):
        export(nn.Linear(8, 3), torch.zeros(2, 8), out=tmp_path / "m.bundle", name="m", programs=("predict",))
    assert list(tmp_path.iterdir()) == []


def test_a_refused_export_leaves_an_older_bundle_alone(tmp_path: Path) -> None:
    out = tmp_path / "m.bundle"
    old = export(nn.Linear(8, 3), torch.zeros(2, 8), out=out, name="m", programs=("predict",))
    with pytest.raises(EdgeflError):
        export(nn.Sequential(nn.RReLU(), nn.Linear(8, 3)), torch.zeros(2, 8), out=out, name="m", programs=("train",))
    from edgefl import bundle

    assert bundle.read(out).sha256 == old.sha256
