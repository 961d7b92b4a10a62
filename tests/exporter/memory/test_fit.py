"""Programs to a budget: the same bits after ten steps, kept by measuring, and a plain word where nothing fits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgefl.bundle import Bundle
from edgefl.errors import InputError, ParityError
from edgefl.replay import Runner
from edgefl.shapes import example_inputs, read_graph
from edgefl.tensors import Array
from edgefl.trust.onnx_walk import check_graph
from edgefl_device.engines.runtime import Runtime
from edgefl_exporter import export
from edgefl_exporter.memory import fit as fitting
from edgefl_exporter.memory.curve import curve
from edgefl_exporter.memory.fit import fit
from edgefl_exporter.memory.growth import Growth
from edgefl_exporter.memory.training import take_apart
from edgefl_exporter.memory.write import write

BATCH = 8
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux")


def norm_net() -> tuple[nn.Module, Tensor]:
    def block(inputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, 8, 1), nn.BatchNorm2d(8), nn.ReLU6()]

    layers = [*block(3), *block(8), *block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    return nn.Sequential(*layers), torch.zeros(1, 3, 8, 8)


class Attention(nn.Module):
    """One block of a transformer over eight tokens of sixteen numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.first, self.second = nn.Linear(16, 48), nn.LayerNorm(16), nn.LayerNorm(16)
        self.mlp, self.head = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).chunk(3, -1)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head((x + self.mlp(self.second(x))).mean(1))  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=["norm", "attention"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    model, x = norm_net() if request.param == "norm" else (Attention(), torch.zeros(1, 8, 16))
    out = tmp_path_factory.mktemp("plain") / "b"
    return export(model, x, out=out, name=request.param, programs=("train",))


def after(data: bytes, bundle: Bundle, steps: int) -> dict[str, Array]:
    program, runner, values = bundle.manifest.program("train"), Runner(data), bundle.weights()
    for _ in range(steps):
        found = runner.run({**values, **example_inputs(program, BATCH)})
        values |= {name: found[output] for name, output in program.writes.items()}
    return values


def test_the_least_program_has_the_same_bits_after_ten_steps(plain: Bundle) -> None:
    program, data = plain.manifest.program("train"), plain.program_bytes("train")
    points = curve(take_apart(read_graph(program, data, plain.weights()), program, BATCH))
    least = write(data, points[-1].program)
    assert points[-1].peak_bytes < 0.85 * points[0].peak_bytes
    assert len(points[-1].program.copies) >= 2
    check_graph(least, where="the program")
    kept, again = after(data, plain, 10), after(least, plain, 10)
    assert all(np.isfinite(value).all() for value in kept.values())
    assert {name: value.tobytes() for name, value in kept.items()} == {n: v.tobytes() for n, v in again.items()}
    assert any((kept[name] != value).any() for name, value in plain.weights().items())


def test_the_runtime_merges_no_copy_with_its_original(plain: Bundle, tmp_path: Path) -> None:
    program, data = plain.manifest.program("train"), plain.program_bytes("train")
    least = curve(take_apart(read_graph(program, data, plain.weights()), program, BATCH))[-1].program
    before, now = (nodes_that_run(file, tmp_path / "o.onnx") for file in (data, write(data, least)))
    assert now >= before + len(least.copies)


def nodes_that_run(data: bytes, place: Path) -> int:
    """How many nodes are left when onnxruntime has optimised a program."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(place), 3
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return len(onnx.load(place).graph.node)


def grows(monkeypatch: pytest.MonkeyPatch, *sizes: int, digests: str = "") -> list[bytes]:
    """Measuring gives these sizes, one after the other; the files that were measured."""
    files: list[bytes] = []

    def measure(program: object, data: bytes, state: object, batch: int) -> Growth:
        files.append(data)
        digest = digests[len(files) - 1] if digests else "same"
        return Growth(sizes[len(files) - 1], 0.001, digest, True, "onnxruntime")

    monkeypatch.setattr(fitting, "measure", measure)
    return files


def fitted(plain: Bundle, budget: int) -> bytes:
    data, memory = fit(plain.manifest.program("train"), plain.program_bytes("train"), plain.weights(), budget, BATCH)
    assert memory.budget_bytes == budget
    assert memory.grown_bytes <= budget
    return data


def test_a_plain_program_that_fits_stays(plain: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    files = grows(monkeypatch, 100)
    assert fitted(plain, 100) == plain.program_bytes("train")
    assert len(files) == 1


def test_a_budget_that_cannot_be_met(plain: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    grows(monkeypatch, 9_000_000, 7_000_000)
    with pytest.raises(
        InputError, match=r"the least .* of 8 examples grows by is 7.0 MB; --memory is 6.0 MB"
    ) as raised:
        fitted(plain, 6_000_000)
    assert "Most of it: " in (raised.value.hint or "")


def test_other_bits_are_refused(plain: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    grows(monkeypatch, 9, 5, digests="ab")
    with pytest.raises(ParityError, match="differs from the plain one"):
        fitted(plain, 6)


def test_the_first_that_fits_is_taken(plain: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    files = grows(monkeypatch, 9, *[5] * 20)  # everything but the plain program fits: the first of the curve is fastest
    program, data = plain.manifest.program("train"), plain.program_bytes("train")
    points = curve(take_apart(read_graph(program, data, plain.weights()), program, BATCH))
    assert fitted(plain, 6) == write(data, points[1].program)
    assert len(files) <= 2 + len(points).bit_length()


@linux
def test_a_bundle_says_what_it_was_made_to(tmp_path: Path) -> None:
    model, x = norm_net()
    bundle = export(model, x, out=tmp_path / "b", name="b", programs=("train",), memory="1GB", memory_batch=4)
    memory = bundle.manifest.program("train").memory
    assert memory is not None
    assert (memory.budget_bytes, memory.batch) == (10**9, 4)
    assert 0 < memory.grown_bytes == memory.plain_bytes < 10**8
    device = Runtime(bundle)  # with a tight arena
    device.step("train", example_inputs(bundle.manifest.program("train"), 4))
