"""The traps of `lowering`, each with the smallest model that falls into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgefl.replay import Runner
from edgefl_exporter import export


class Guarded(nn.Module):
    """log(relu(x) + 1e-8): without the guard a dead ReLU gives -inf and a gradient of 0/0."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.log(torch.relu(self.inner(x)) + 1e-8))


def test_an_epsilon_of_1e_8_survives(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = export(Guarded(), torch.zeros(1, 4), out=tmp_path / "m.bundle", name="m")
    weights = {**bundle.weights(), "inner.bias": np.full(6, -9.0, np.float32)}  # every ReLU is dead
    x = np.zeros((2, 4), np.float32)
    got = Runner(bundle.bytes_of(bundle.manifest.programs["predict"].file)).run({**weights, "x": x})["logits"]
    want = weights["head.weight"].sum(1) * np.log(np.float32(1e-8)) + weights["head.bias"]
    np.testing.assert_allclose(got, np.stack([want, want]), rtol=1e-5)
    given = {"x": x, "y": np.zeros(2, np.int64), "learning_rate": np.array(1, np.float32)}
    step = Runner(bundle.bytes_of(bundle.manifest.programs["train"].file)).run({**weights, **given})
    assert np.array_equal(step["next.inner.weight"], weights["inner.weight"])  # a gradient of exactly zero


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x * self.weight) * self.scale


def test_a_dead_relu_has_no_gradient_even_where_it_would_be_infinite(tmp_path: Path) -> None:
    """dL/drelu = 2/n (0 + 3e38) 3e38: a product with 0 would make NaN of it."""
    net = Scaled()
    bundle = export(net, -torch.ones(1, 4), loss="mse", out=tmp_path / "m.bundle", name="m", programs=("gradient",))
    data = bundle.bytes_of(bundle.manifest.programs["gradient"].file)
    assert "Where" not in {node.op_type for node in onnx.load_from_string(data).graph.node}
    with torch.no_grad():
        net.scale.fill_(3e38)
    x, y = torch.tensor([[-1.0, 0.0, -1e-30, 2.0]]), torch.tensor([[-3e38, -3e38, 3e38, 3e38]])
    nn.functional.mse_loss(net(x), y).backward()  # type: ignore[no-untyped-call]
    assert net.weight.grad is not None and np.isinf(net.weight.grad.numpy()).tolist() == [False, False, False, True]
    weights = {**bundle.weights(), "scale": np.full(4, 3e38, np.float32)}
    got = Runner(data).run({**weights, "x": x.numpy(), "y": y.numpy()})
    np.testing.assert_array_equal(got["gradient.weight"], net.weight.grad.numpy())


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2), nn.MaxPool2d(2, ceil_mode=True)])
@pytest.mark.parametrize("rectified", [False, True])
def test_ties_in_max_pool_go_to_the_first_maximum_as_in_pytorch(
    pool: nn.Module, rectified: bool, tmp_path: Path
) -> None:
    """Pixels from {-1, 0, 1} through an identity convolution: most windows have several maxima."""
    conv = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.bias.zero_()  # type: ignore[union-attr]
    middle = [nn.ReLU()] if rectified else []
    width = pool(torch.zeros(1, 1, 7, 7)).numel()
    torch.manual_seed(0)
    # The first layer makes the pool's input gradient visible: its weight is one number per pixel.
    net = nn.Sequential(PixelScale(), conv, *middle, pool, nn.Flatten(), nn.Linear(width, 3))
    bundle = export(net, torch.zeros(1, 1, 7, 7), out=tmp_path / "m.bundle", name="m", programs=("train",))
    x = torch.randint(-1, 2, (5, 1, 7, 7), generator=torch.Generator().manual_seed(3)).float()
    y = torch.tensor([0, 1, 2, 0, 1])
    loss = nn.functional.cross_entropy(net(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    given = {"x": x.numpy(), "y": y.numpy(), "learning_rate": np.array(1, np.float32)}
    got = Runner(bundle.bytes_of(bundle.manifest.programs["train"].file)).run({**bundle.weights(), **given})
    np.testing.assert_allclose(1 - got["next.0.scale"], net[0].scale.grad.numpy(), atol=1e-6)


class PixelScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 7, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_batch_norm_statistics_use_n_over_n_minus_one(tmp_path: Path) -> None:
    """x = 0 and 2: mean 1, biased variance 1, unbiased 2; momentum 0.1 from running (0, 1)."""
    net = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 2))
    bundle = export(net, torch.zeros(2, 1), out=tmp_path / "m.bundle", name="m", programs=("train",))
    given = {
        "x": np.array([[0.0], [2.0]], np.float32),
        "y": np.array([0, 1]),
        "learning_rate": np.array(0, np.float32),
    }
    got = Runner(bundle.bytes_of(bundle.manifest.programs["train"].file)).run({**bundle.weights(), **given})
    assert got["next.0.running_mean"] == pytest.approx(0.1)
    assert got["next.0.running_var"] == pytest.approx(0.9 * 1 + 0.1 * 2)
    assert got["next.0.num_batches_tracked"] == 1


def test_a_last_batch_of_one_does_not_spoil_batch_norm(tmp_path: Path) -> None:
    """PyTorch refuses to train BatchNorm1d on one example; a program has no way to, so it must stay finite."""
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    bundle = export(net, torch.zeros(2, 2), out=tmp_path / "m.bundle", name="m", programs=("train",))
    given = {"x": np.ones((1, 2), np.float32), "y": np.array([0]), "learning_rate": np.array(1, np.float32)}
    got = Runner(bundle.bytes_of(bundle.manifest.programs["train"].file)).run({**bundle.weights(), **given})
    assert all(np.isfinite(value).all() for value in got.values())
    assert got["next.0.running_var"] == pytest.approx(0.9)


def test_equal_initial_tensors_keep_their_names(tmp_path: Path) -> None:
    """A fresh BatchNorm's weight equals its running variance; an exporter that merges equal weights loses one."""
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    bundle = export(net, torch.zeros(2, 3), out=tmp_path / "m.bundle", name="m", programs=("predict",))
    program = onnx.load_from_string(bundle.bytes_of(bundle.manifest.programs["predict"].file))
    assert {"0.weight", "0.running_var"} <= {i.name for i in program.graph.input}
    assert sum(len(tensor.raw_data) for tensor in program.graph.initializer) < 100


class Running(nn.Module):
    """The cumulative maximum over [batch, 3], scaled by a weight per place."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.ones(3)), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, places = torch.cummax(x * self.scale, 1)
        return self.head(values + places)


def test_the_last_of_equal_values_is_the_cumulative_maximum_as_in_pytorch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Running()
    bundle = export(net, torch.zeros(1, 3), out=tmp_path / "m.bundle", name="m", programs=("gradient",))
    x, y = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]]), torch.tensor([0, 1])
    nn.functional.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
    got = Runner(bundle.bytes_of(bundle.manifest.programs["gradient"].file)).run(
        {**bundle.weights(), "x": x.numpy(), "y": y.numpy()}
    )
    assert net.scale.grad is not None
    np.testing.assert_allclose(got["gradient.scale"], net.scale.grad.numpy(), atol=1e-6)


def test_adapters_inside_a_transformer_layer_count_in_evaluation_too(tmp_path: Path) -> None:
    """PyTorch's fused layer, which it takes in evaluation mode, would read the weights and leave the adapters out."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3))
    bundle = export(net, torch.zeros(1, 3, 4), out=tmp_path / "m.bundle", name="m", lora=2, programs=("evaluate",))
    assert "0.linear1.lora_a" in bundle.manifest.program("evaluate").reads


def test_a_head_of_zeros_trains(tmp_path: Path) -> None:
    """Every logit is exactly 0, where clamp and abs have kinks and sigmoid has none."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    nn.init.zeros_(net[2].weight)  # type: ignore[arg-type]
    nn.init.zeros_(net[2].bias)  # type: ignore[arg-type]
    loss = "binary_cross_entropy"
    bundle = export(net, torch.zeros(1, 3), out=tmp_path / "m.bundle", name="m", loss=loss, programs=("train",))
    x, y = np.ones((2, 3), np.float32), np.array([[1, 0], [1, 0]], np.float32)
    given = {"x": x, "y": y, "learning_rate": np.array(1, np.float32)}
    got = Runner(bundle.bytes_of(bundle.manifest.programs["train"].file)).run({**bundle.weights(), **given})
    np.testing.assert_allclose(got["next.2.bias"], [0.25, -0.25], atol=1e-6)  # (0.5 - y) / 2 labels
