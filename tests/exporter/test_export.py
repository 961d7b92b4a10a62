"""What a bundle is: names, roles, sizes, bytes; and what export leaves alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgefl.bundle import Bundle
from edgefl.replay import Runner, replay
from edgefl_exporter import SGD, export
from edgefl_exporter.zoo import ZOO


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return small_net()


@pytest.fixture(scope="module")
def bundle(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("export") / "net.bundle"
    return export(net, torch.zeros(1, 1, 6, 6), out=out, name="net", optimizer=SGD(0.1, 0.9, 1e-3))


def test_manifest_names_what_each_program_reads_and_writes(bundle: Bundle) -> None:
    train, evaluate = bundle.manifest.programs["train"], bundle.manifest.programs["evaluate"]
    weights = {"0.weight", "0.bias", "1.weight", "1.bias", "5.weight", "5.bias"}
    statistics = {"1.running_mean", "1.running_var"}
    moments = {f"optimizer.momentum.{name}" for name in weights}
    assert set(train.writes) == weights | statistics | moments | {"1.num_batches_tracked"}
    assert train.writes["0.weight"] == "next.0.weight"
    assert set(evaluate.reads) == weights | statistics and evaluate.writes == {}
    assert [(i.name, i.shape) for i in train.inputs] == [
        ("x", ("batch", 1, 6, 6)),
        ("y", ("batch",)),
        ("learning_rate", ()),
    ]
    roles = {t.name: (t.role, t.fuse) for t in bundle.manifest.state}
    assert roles["0.weight"] == ("parameter", "mean")
    assert roles["1.running_var"] == ("buffer", "mean")
    assert roles["1.num_batches_tracked"] == ("buffer", "local")
    assert roles["optimizer.momentum.0.weight"] == ("optimizer", "local")


def test_programs_are_plain_onnx_without_traces_of_the_machine(bundle: Bundle) -> None:
    for program in bundle.manifest.programs.values():
        data = bundle.bytes_of(program.file)
        model = onnx.load_from_string(data)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
        assert model.ir_version <= 10
        assert {n.domain for n in model.graph.node} == {""}
        assert b"site-packages" not in data and b".py" not in data
        assert [i.name for i in model.graph.input][: len(program.inputs)] == [i.name for i in program.inputs]


def test_momentum_and_weight_decay_follow_torch_sgd_for_twenty_steps(net: nn.Module, bundle: Bundle) -> None:
    """One torch optimizer kept for the whole way: also its first step, when it has no momentum buffer yet."""
    torch_net = small_net().train()
    optimizer = torch.optim.SGD(torch_net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    program = bundle.manifest.programs["train"]
    runner, state = Runner(bundle.bytes_of(program.file)), bundle.weights()
    generator = torch.Generator().manual_seed(5)
    for step in range(20):
        x = torch.randn(7 if step % 3 else 2, 1, 6, 6, generator=generator)  # short batches between
        y = torch.randint(0, 3, (len(x),), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(torch_net(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        given = {"x": x.numpy(), "y": y.numpy(), "learning_rate": np.array(0.05, np.float32)}
        got = runner.run({**state, **given})
        state = {name: got[program.writes.get(name, name)] for name in state}
        assert got["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for name, tensor in torch_net.state_dict().items():
        np.testing.assert_allclose(state[name], tensor.numpy(), rtol=1e-3, atol=1e-5, err_msg=name)
    assert state["1.num_batches_tracked"] == 20


def test_evaluate_counts_a_short_batch_right(net: nn.Module, bundle: Bundle) -> None:
    """Loss is the mean over the batch at hand and correct its count, whatever its size."""
    runner = Runner(bundle.bytes_of(bundle.manifest.programs["evaluate"].file))
    torch_net = small_net().eval()
    for count in (1, 2, 11):
        x = torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(count))
        y = torch.arange(count) % 3
        with torch.no_grad():
            logits = torch_net(x)
        got = runner.run({**bundle.weights(), "x": x.numpy(), "y": y.numpy()})
        assert got["correct"] == (logits.argmax(1) == y).sum().item()
        assert got["loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)


def test_equal_models_give_equal_bytes(bundle: Bundle, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    again = export(
        small_net(), torch.zeros(1, 1, 6, 6), out=tmp_path / "again.bundle", name="net", optimizer=SGD(0.1, 0.9, 1e-3)
    )
    torch.random.set_rng_state(before)
    assert again.sha256 == bundle.sha256


def test_the_model_and_the_random_state_are_left_as_they_were(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [child.training for child in model.modules()]
    random = torch.random.get_rng_state()
    export(model, torch.zeros(1, 4), out=tmp_path / "m.bundle", name="m", programs=("train",))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [child.training for child in model.modules()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(random, torch.random.get_rng_state())


def test_frozen_parameters_are_kept_and_not_trained(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    bundle = export(model, torch.zeros(1, 4), out=str(tmp_path / "m.bundle"), name="m", programs=("train",))
    assert set(bundle.manifest.programs["train"].writes) == {"2.weight", "2.bias"}
    assert "0.weight" in bundle.manifest.programs["train"].reads


@pytest.mark.parametrize(("name", "count"), [("mnist-2nn", 199_210), ("mnist-cnn", 1_663_370)])
def test_fedavg_nets_have_the_papers_parameter_counts(name: str, count: int) -> None:
    model, example = ZOO[name].make()
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model(example).shape == (1, 10)


def test_replay_proves_a_bundle_without_torch(bundle: Bundle) -> None:
    worst = replay(bundle)
    assert worst.keys() == {"train", "evaluate", "predict"} and max(worst.values()) < 1e-4
    code = (
        "import sys; from edgefl import bundle, replay; replay.replay(bundle.read(sys.argv[1])); "
        "assert not {'torch', 'onnx', 'edgefl_exporter'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(bundle.path)], check=True)
