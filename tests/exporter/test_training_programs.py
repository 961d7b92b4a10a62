"""Programs exported with options, carried out by a device: what each promises, as a law between two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgefl.bundle import Bundle
from edgefl.errors import InputError, LoweringError
from edgefl.method import Task
from edgefl_device.data.contract import fit_to_contract
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.interpreter import Outcome, perform
from edgefl_exporter import SGD, Adam, Group, export

LR = {"learning_rate": 0.5}


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def made(folder: Path, name: str, **options: Any) -> Bundle:
    options.setdefault("programs", ("train",))
    return export(net(), torch.zeros(1, 4), out=folder / f"{name}.bundle", name=name, **options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return made(tmp_path_factory.mktemp("plain"), "plain", programs=("train", "gradient"))


def carried_out(
    bundle: Bundle, *tasks: Task, announced: dict[str, np.ndarray] | None = None
) -> tuple[Outcome, dict[str, np.ndarray]]:
    """The outcome of the tasks on ten fixed examples, and the state afterwards."""
    random = np.random.default_rng(0)
    data = Dataset(random.normal(size=(10, 4)).astype(np.float32), random.integers(0, 3, 10))
    runtime = Runtime(bundle)
    feeds = {"train": fit_to_contract(data, bundle.manifest.data, "test")}
    return perform(runtime, tasks, announced or {}, feeds, device="d"), runtime.state()


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    for name in net().state_dict():
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_padded_batch_trains_as_the_short_one(plain: Bundle, tmp_path: Path) -> None:
    """10 examples in batches of 4: the last has 2 rows that are only padding."""
    task = Task(program="train", batch_size=4, settings=LR)
    fixed = made(tmp_path, "fixed", batch=4)
    assert fixed.manifest.program("train").inputs[0].shape == (4, 4)
    want, dynamic_state = carried_out(plain, task)
    got, fixed_state = carried_out(fixed, task)
    assert_equal(fixed_state, dynamic_state)
    assert got.metrics["train.loss"] == pytest.approx(want.metrics["train.loss"])
    assert got.metrics["train.correct"] == want.metrics["train.correct"]
    with pytest.raises(InputError, match="batch_size is 8, but the program was exported for batches of 4"):
        carried_out(fixed, Task(program="train", batch_size=8, settings=LR))


def test_batch_norm_refuses_a_fixed_batch(tmp_path: Path) -> None:
    norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(LoweringError, match="module '1' is BatchNorm1d: its statistics would count the padding"):
        export(norm, torch.zeros(1, 4), out=tmp_path / "m.bundle", name="m", batch=4)


def test_micro_batches_add_up_to_the_whole_batch(plain: Bundle, tmp_path: Path) -> None:
    """10 examples as micro-batches of 4, 4 and 2 make one step of the mean gradient over all ten."""
    micro = made(tmp_path, "micro", micro_batches=3)
    _, whole = carried_out(plain, Task(program="train", batch_size=0, settings=LR))
    _, parts = carried_out(micro, Task(program="train", batch_size=4, settings=LR))
    assert_equal(parts, whole)
    assert parts["optimizer.micro_batch"] == 0 and not parts["optimizer.gradient.0.weight"].any()
    one, more = carried_out(micro, Task(program="train", batch_size=4, steps=5, settings=LR, send=("0.*",)))
    assert one.steps == 1  # of the optimizer: the fourth and fifth batch wait for a sixth
    assert_equal(more, whole)  # nothing more is applied before the sixth batch
    assert more["optimizer.micro_batch"] == 2 and more["optimizer.examples"] == 8
    with pytest.raises(InputError, match="2 batches, but a step needs 3, so nothing would train"):
        carried_out(micro, Task(program="train", batch_size=5, settings=LR))


def test_the_gradient_program_sends_what_training_would_apply(plain: Bundle) -> None:
    before = plain.weights()
    outcome, after = carried_out(plain, Task(program="gradient", batch_size=4, send=("gradient.*",)))
    _, trained = carried_out(plain, Task(program="train", batch_size=0, settings=LR))
    assert_equal(after, before)
    stepped = {name: w - 0.5 * outcome.tensors[f"gradient.{name}"] for name, w in before.items()}
    assert_equal(stepped, trained)


def test_the_proximal_term_pulls_to_the_anchor(plain: Bundle, tmp_path: Path) -> None:
    """With mu = 1 / learning rate the pull undoes the step before; with mu = 0 there is none."""
    near = made(tmp_path, "near", proximal=0.1)
    step = Task(program="train", batch_size=0, steps=1, settings=LR | {"proximal": 2.0})
    anchored = Task(program="anchor", steps=1, batch_size=1)
    _, one = carried_out(near, anchored, step)
    _, two = carried_out(near, anchored, step, step)
    assert np.abs(one["0.weight"] - near.weights()["0.weight"]).max() > 1e-3
    # w2 = w1 - lr * (g(w1) + (w1 - w0) / lr) = w0 - lr * g(w1)
    load = Task(program="gradient", load=("*",), batch_size=0, send=("gradient.*",))
    there = {name: one[name] for name in net().state_dict()}
    g, _ = carried_out(plain, load, announced=there)
    assert_equal({n: near.weights()[n] - 0.5 * g.tensors[f"gradient.{n}"] for n in there}, two)
    _, again = carried_out(near, step, anchored)
    np.testing.assert_array_equal(again["anchor.0.weight"], again["0.weight"])
    free = Task(program="train", batch_size=0, epochs=3, settings=LR | {"proximal": 0.0})
    _, unpulled = carried_out(near, free)
    _, wanted = carried_out(plain, Task(program="train", batch_size=0, epochs=3, settings=LR))
    assert_equal(unpulled, wanted)


def test_what_does_not_train_never_travels(tmp_path: Path) -> None:
    head = made(tmp_path, "head", train=["2.*"], optimizer=Adam(learning_rate=0.01))
    assert {t.name for t in head.manifest.shared()} == {"2.weight", "2.bias"}
    _, after = carried_out(head, Task(program="train", batch_size=4, epochs=2))
    np.testing.assert_array_equal(after["0.weight"], head.weights()["0.weight"])
    assert np.abs(after["2.weight"] - head.weights()["2.weight"]).max() > 0.01
    adapted = made(tmp_path, "adapted", lora=2)
    assert {t.name for t in adapted.manifest.shared()} == {f"{i}.lora_{m}" for i in (0, 2) for m in "ab"}


def test_a_group_has_its_own_learning_rate(plain: Bundle, tmp_path: Path) -> None:
    slow = made(tmp_path, "slow", groups=[Group(("0.*",), learning_rate=0.0)])
    task = Task(program="train", batch_size=0, settings=LR)
    _, after = carried_out(slow, task)
    _, want = carried_out(plain, task)
    np.testing.assert_array_equal(after["0.weight"], slow.weights()["0.weight"])
    np.testing.assert_allclose(after["2.weight"], want["2.weight"], rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match=r"group 'body\.\*' matches no trained parameter"):
        made(tmp_path, "wrong", groups=[Group(("body.*",))])


def test_a_clipped_step_has_the_norm_it_is_clipped_to(tmp_path: Path) -> None:
    clipped = made(tmp_path, "clipped", clip_norm=1.0, optimizer=SGD(learning_rate=1.0))
    _, after = carried_out(clipped, Task(program="train", batch_size=0, settings={"clip_norm": 0.01}))
    moved = [after[name] - clipped.weights()[name] for name in net().state_dict()]
    assert np.sqrt(sum((m**2).sum() for m in moved)) == pytest.approx(0.01, rel=1e-3)
