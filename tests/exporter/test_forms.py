"""Forms chosen for speed give PyTorch's numbers at every shape: gradients of convolutions, pools and slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgefl_exporter import export
from edgefl_exporter.lowering.lower import lower
from edgefl_exporter.programs.optimizers import SGD
from edgefl_exporter.proof.cases import TOLERANCE


def output_and_gradients(module: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], bytes, dict[str, Tensor]]:
    """PyTorch's output and gradients of the input and each parameter, the lowered program, and what it reads."""
    weights = {name: w.detach() for name, w in module.named_parameters()}

    def step(values: Any) -> dict[str, Tensor]:
        with torch.enable_grad():
            own = {name: values[name].detach().requires_grad_() for name in weights}
            given = values["x"].detach().requires_grad_()
            y = torch.func.functional_call(module, own, (given,))
            slope = torch.cos(torch.arange(y.shape[-1], dtype=torch.float32))
            gradients = torch.autograd.grad((y * y * slope).sum(), [given, *own.values()])
        names = ["x", *own]
        return {"y": y.detach()} | {f"g.{name}": g for name, g in zip(names, gradients, strict=True)}

    values = {"x": x, **weights}
    return step(values), lower(step, values, batched={"x"}, module=module), values


def check(module: nn.Module, x: Tensor, tolerance: float) -> list[str]:
    """Compare; the operators of the program."""
    want, data, values = output_and_gradients(module, x)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    inputs = {entry.name: values[entry.name].numpy() for entry in session.get_inputs()}
    results = session.run(None, inputs)
    for entry, got in zip(session.get_outputs(), results, strict=True):
        wanted = want[entry.name].numpy()
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * max(np.abs(wanted).max(), 1e-6))
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "ceil_mode"),
    [
        (2, 2, 0, 1, False),
        (2, 2, 0, 1, True),
        (3, 2, 1, 1, False),
        (3, 1, 1, 1, False),
        (3, 2, 0, 1, True),
        (3, 2, 1, 2, True),
        (2, 1, 0, 2, False),
        (3, 3, 0, 1, False),
        ((1, 3), (1, 2), (0, 1), 1, False),
        ((3, 1), 2, 0, 1, False),
        (4, 4, 0, 1, False),  # more places than are found by pools
    ],
)
def test_max_pools_send_the_gradient_to_the_first_maximum(
    kernel: Any, stride: Any, padding: Any, dilation: int, ceil_mode: bool, size: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-2, 2, (3, 2, size, size), generator=generator).float()  # most windows have ties

    check(nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode), x, 1e-6)


def test_a_max_pool_does_not_ask_for_places() -> None:
    _, data, _ = output_and_gradients(nn.MaxPool2d(2), torch.zeros(2, 1, 4, 4))
    pools = [node for node in onnx.load_from_string(data).graph.node if node.op_type == "MaxPool"]
    assert pools and all(len(node.output) == 1 for node in pools)


@pytest.mark.parametrize("size", [9, 12])
@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3, "padding": 1, "groups": 6},
        {"kernel_size": 3, "padding": 1, "groups": 6, "stride": 2},
        {"kernel_size": 5, "padding": 2, "groups": 6, "stride": 2},
        {"kernel_size": 3, "padding": 2, "groups": 6, "dilation": 2},
        {"kernel_size": 3, "groups": 6, "stride": 2},
        {"kernel_size": 3, "padding": 1, "groups": 6, "stride": 3},
        {"kernel_size": (3, 1), "padding": (1, 0), "groups": 6, "stride": (2, 1)},
        {"kernel_size": 3, "padding": 1, "groups": 3},
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2},
    ],
)
def test_convolutions(arguments: dict[str, Any], size: int) -> None:
    torch.manual_seed(0)
    check(nn.Conv2d(6, 6, **arguments), torch.randn(3, 6, size, size + 1), 1e-5)


def test_depthwise_convolutions_of_wide_images_and_of_sequences() -> None:
    torch.manual_seed(0)
    check(nn.Conv2d(4, 4, 3, 2, 1, groups=4), torch.randn(2, 4, 5, 70), 1e-5)
    check(nn.Conv1d(4, 4, 3, 2, 1, groups=4), torch.randn(2, 4, 31), 1e-5)
    check(nn.Conv1d(4, 4, 9, 2, 4, groups=4), torch.randn(2, 4, 131), 1e-5)


class Strided(nn.Module):
    """Every second row and third column, from the second on; and a piece from the end."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 1::2, 2::3].sum((2, 3)) * x[:, :, -3:, 1:-1].sum((2, 3)) * x[:, :, 0, ::2].sum(2)


def test_slices_scatter_nothing() -> None:
    torch.manual_seed(0)
    operators = check(Strided(), torch.randn(2, 3, 7, 8), 1e-5)
    assert not {"ScatterND", "ScatterElements"} & set(operators)


def test_the_step_of_a_linear_layer_is_one_gemm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = export(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 8)),
        torch.zeros(1, 1, 4, 4),
        out=tmp_path / "linear.bundle",
        name="linear",
        optimizer=SGD(0.5),
        programs=("train",),
    )
    program = bundle.manifest.program("train")
    assert program.parity.worst <= TOLERANCE
    graph = onnx.load_from_string(bundle.bytes_of(program.file)).graph
    (step,) = [node for node in graph.node if "next.1.weight" in node.output]
    assert step.op_type == "Gemm" and "1.weight" in step.input


def test_no_convolution_is_kept_to_be_counted(tmp_path: Path) -> None:
    """A Size of a layer's output would keep the output until the runtime wants to know it."""
    torch.manual_seed(0)
    bundle = export(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
        torch.zeros(1, 1, 4, 4),
        out=tmp_path / "net.bundle",
        name="net",
        programs=("train",),
    )
    nodes = onnx.load_from_string(bundle.program_bytes("train")).graph.node
    assert "Size" not in {node.op_type for node in nodes}
    made = {output: node.op_type for node in nodes for output in node.output}
    assert "Conv" not in {made.get(node.input[0]) for node in nodes if node.op_type == "Shape"}
