"""FedMRL's programs against the equations of arXiv:2406.00488, written out here once more."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from emulated import Devices, fuse
from torch import Tensor, nn

from edgefl.bundle import Bundle
from edgefl.errors import LoweringError
from edgefl.methods.fedmrl import FedMRL
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_exporter import export, methods
from edgefl_exporter.programs.optimizers import SGD
from edgefl_exporter.programs.update import Group
from edgefl_exporter.zoo.classifiers import cnn5

D1, D2, CLASSES = 3, 5, 4
RATE, MOMENTUM, DECAY, CLIP = 0.5, 0.9, 1e-2, 0.2
X = torch.zeros(1, 6)


def small(features: int = D1, classes: int = CLASSES) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, features), nn.BatchNorm1d(features), nn.ReLU(), nn.Linear(features, classes))


class Local(nn.Module):
    """The last Linear is not the last attribute, and is called otherwise."""

    def __init__(self, features: int = D2) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Linear(6, features)
        self.classifier = nn.Linear(features, CLASSES)
        self.norm = nn.BatchNorm1d(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.norm(self.body(x)).relu())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make(tmp_path_factory.mktemp("fedmrl") / "b", Local())


def make(out: Path, local: nn.Module, **options: Any) -> Bundle:
    optimizer = SGD(RATE, MOMENTUM, DECAY)
    method = methods.FedMRL(small=small())
    return export(local, X, out=out, name="b", method=method, optimizer=optimizer, clip_norm=CLIP, **options)


def batch(count: int = 9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 6)).astype(np.float32), rng.integers(0, CLASSES, count)


def inputs(count: int = 9, seed: int = 0, **settings: float) -> dict[str, Any]:
    x, y = batch(count, seed)
    weights = {"inner_weight": 1.0, "outer_weight": 1.0} | settings
    return {"x": x, "y": y} | {name: np.array(value, np.float32) for name, value in weights.items()}


def equations(g: nn.Sequential, f: Local, projector: nn.Linear, x: Tensor, *, d1: int = D1) -> tuple[Tensor, Tensor]:
    """outer, inner"""
    r_g = g[2](g[1](g[0](x)))
    r_f = f.norm(f.body(x)).relu()
    m = torch.cat([r_g, r_f], dim=1) @ projector.weight.T + projector.bias
    return m @ f.classifier.weight.T + f.classifier.bias, m[:, :d1] @ g[3].weight.T + g[3].bias


def test_three_steps_of_training_are_those_of_the_equations(bundle: Bundle) -> None:
    """Gradients of each module clipped by their own norm, then SGD with momentum and weight decay, as PyTorch's."""
    runtime = Runtime(bundle)
    g, f, projector = small(), Local(), nn.Linear(D1 + D2, D2)
    start = {name: torch.from_numpy(value) for name, value in runtime.state().items()}
    projector.load_state_dict({"weight": start["projector.weight"], "bias": start["projector.bias"]})
    modules = (g, f, projector)
    optimizer = torch.optim.SGD(
        [p for module in modules for p in module.parameters()], lr=RATE, momentum=MOMENTUM, weight_decay=DECAY
    )
    for step, weights in enumerate([(1.0, 1.0), (0.25, 2.0), (3.0, 0.0)]):
        fed = inputs(seed=step, inner_weight=weights[0], outer_weight=weights[1])
        got = runtime.step("train", fed | {"learning_rate": np.array(RATE, np.float32)})

        x, y = torch.from_numpy(fed["x"]), torch.from_numpy(fed["y"])
        outer, inner = equations(g, f, projector, x)
        loss = weights[0] * F.cross_entropy(inner, y) + weights[1] * F.cross_entropy(outer, y)
        optimizer.zero_grad()
        loss.backward()
        norms = [float(nn.utils.clip_grad_norm_(module.parameters(), CLIP)) for module in modules]
        assert max(norms) > CLIP  # so that clipping is seen to be done, module by module
        optimizer.step()

        assert got["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
        assert got["outer_loss"].item() == pytest.approx(F.cross_entropy(outer, y).item(), rel=1e-5)
        assert got["inner_loss"].item() == pytest.approx(F.cross_entropy(inner, y).item(), rel=1e-5)
        assert got["correct"].item() == (outer.argmax(1) == y).sum().item()
        assert got["inner_correct"].item() == (inner.argmax(1) == y).sum().item()
    expected = {
        "small.extractor.0.weight": g[0].weight,
        "small.extractor.1.running_var": g[1].running_var,
        "small.head.weight": g[3].weight,
        "local.extractor.body.weight": f.body.weight,
        "local.extractor.norm.running_mean": f.norm.running_mean,
        "local.head.bias": f.classifier.bias,
        "projector.weight": projector.weight,
        "projector.bias": projector.bias,
    }
    for name, want in expected.items():
        assert want is not None
        np.testing.assert_allclose(runtime.view(name), want.detach(), rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_group_of_ones_own_comes_before_those_of_the_modules(tmp_path: Path) -> None:
    """The first group that matches a parameter has it: this one holds the outer head still, which its module moves."""
    held = Group(("local.head.*",), learning_rate=0.0)
    runtime = Runtime(make(tmp_path / "b", Local(), groups=(held,), programs=("train",)))
    before = runtime.state()
    runtime.step("train", inputs() | {"learning_rate": np.array(RATE, np.float32)})
    after = runtime.state()
    np.testing.assert_array_equal(after["local.head.weight"], before["local.head.weight"])
    assert not np.array_equal(after["local.extractor.body.weight"], before["local.extractor.body.weight"])


def test_the_inner_doll_is_the_prefix_of_the_projected_vector(bundle: Bundle) -> None:
    """Row i of the projector makes m[i]: the small head sees the first d1 of them, and no other."""
    runtime = Runtime(bundle)
    x = {"x": batch()[0]}
    before = runtime.step("predict", x)
    projector = runtime.state(["projector.weight"])["projector.weight"]
    assert projector.shape == (D2, D1 + D2)
    for row in range(D2):
        changed = projector.copy()
        changed[row] += 1
        runtime.load({"projector.weight": changed})
        after = runtime.step("predict", x)
        assert np.array_equal(after["inner_logits"], before["inner_logits"]) == (row >= D1), row
        assert not np.array_equal(after["logits"], before["logits"])


def test_only_the_small_model_is_shared(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert {t.name for t in manifest.shared()} == {
        *(f"small.extractor.0.{name}" for name in ("weight", "bias")),
        *(f"small.extractor.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
        *(f"small.head.{name}" for name in ("weight", "bias")),
    }
    assert {t.name for t in manifest.state if t.role != "optimizer" and t.fuse == "local"} == {
        "small.extractor.1.num_batches_tracked",
        *(f"local.extractor.body.{name}" for name in ("weight", "bias")),
        *(f"local.extractor.norm.{name}" for name in ("weight", "bias")),
        *(f"local.extractor.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")),
        *(f"local.head.{name}" for name in ("weight", "bias")),
        *(f"projector.{name}" for name in ("weight", "bias")),
    }
    assert manifest.method == "fedmrl"
    assert manifest.program("train").settings() == pytest.approx(
        {"learning_rate": RATE, "inner_weight": 1.0, "outer_weight": 1.0}
    )


def test_rounds_fuse_the_small_model_and_leave_each_device_its_own(bundle: Bundle, tmp_path: Path) -> None:
    """Two devices of different width d2. A round is a new process: what they keep survives it."""
    other = make(tmp_path / "other", Local(features=7))
    data = {"a": Dataset(*batch(12, seed=1)), "b": Dataset(*batch(6, seed=2))}
    devices = Devices({"a": bundle, "b": other}, data)
    method = FedMRL(initial=bundle.shared_weights(), rounds=2, epochs=2, batch_size=4, evaluate=True)
    state = method.start()
    kept = [dict(devices.kept)]
    for number in range(2):
        ask = method.ask(state)
        assert ask is not None
        replies = devices.replies(ask, number)
        kept.append(dict(devices.kept))
        for reply in replies:
            assert set(reply.tensors) == set(bundle.shared_weights())  # nothing else leaves
            assert reply.metrics["evaluate.examples"] == len(data[reply.device])
            before, after = kept[-2][reply.device], kept[-1][reply.device]
            if before:  # from the second round on it starts from what it kept
                assert not np.array_equal(before["projector.weight"], after["projector.weight"])
        state = method.advance(state, fuse(ask, replies))
        for name, value in state.tensors.items():
            a, b = (reply.tensors[name].astype(np.float64) for reply in replies)
            np.testing.assert_allclose(value, (12 * a + 6 * b) / 18, rtol=1e-6)
            assert not np.array_equal(value, replies[0].tensors[name]), name
            assert not np.array_equal(value, replies[1].tensors[name]), name
    assert kept[-1]["a"]["projector.weight"].shape == (5, 3 + 5)
    assert kept[-1]["b"]["projector.weight"].shape == (7, 3 + 7)


def test_the_models_given_are_left_as_they_were(tmp_path: Path) -> None:
    g, f = small().eval(), Local().train()
    before = copy.deepcopy((g.state_dict(), f.state_dict()))
    export(f, X, out=tmp_path / "b", name="b", method=methods.FedMRL(small=g), programs=["predict"])
    assert not any(part.training for part in g.modules()) and all(part.training for part in f.modules())
    for module, state in zip((g, f), before, strict=True):
        assert module.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


class Softmax(Local):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


@pytest.mark.parametrize(
    ("g", "f", "options", "message"),
    [
        (nn.Sequential(nn.Conv1d(1, 4, 6)), Local(), {}, "the small model has no Linear inside"),
        (nn.Linear(6, 4), Local(), {}, "the small model has no Linear inside"),
        (small(), Softmax(), {}, "the local model does not end with its last Linear, 'classifier'"),
        (small(6), Local(), {}, "the small model has 6 features before its last layer, the local one only 5"),
        (small(classes=3), Local(), {}, "the small model has 3 outputs, the local one 4"),
        (nn.Sequential(nn.Linear(7, 3), nn.Linear(3, 4)), Local(), {}, "the small model fails on an input of shape"),
        (small(), Local(), {"loss": "next_token"}, "next_token needs float32 logits [batch, time, classes]"),
        (
            small(),
            Local(),
            {"method": methods.FedMRL(small=small(), d1=4)},
            "the small model has 3 features before its last layer, not 4",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(
    tmp_path: Path, g: nn.Module, f: nn.Module, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoweringError) as caught:
        export(f, X, out=tmp_path / "b", name="b", **{"method": methods.FedMRL(small=g)} | options)
    assert message in caught.value.message and "\n" not in caught.value.message
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("features", "parameters"), [(500, 670_058), (100, 465_658)])
def test_the_papers_small_models_are_of_its_size(features: int, parameters: int) -> None:
    assert sum(p.numel() for p in cnn5(features)[0].parameters()) == parameters


def test_other_losses_measure_both_heads(tmp_path: Path) -> None:
    """The base loss says what is measured and predicted."""
    programs = ["evaluate", "predict"]
    method = methods.FedMRL(small=small())
    made = export(Local(), X, out=tmp_path / "b", name="b", method=method, loss="mse", programs=programs).manifest
    assert [o.name for o in made.program("evaluate").outputs] == [
        "loss",
        *("absolute_error", "outer_loss"),
        *("inner_absolute_error", "inner_loss"),
    ]
    assert [o.name for o in made.program("predict").outputs] == ["prediction", "inner_prediction"]
