"""CoDream's aggregator half against PyTorch, and whole runs of it with devices of two architectures."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from dreamers import DREAMS, dense, export_dreamers
from msgspec.structs import replace
from PIL import Image

from edgefl import bundle as bundles
from edgefl import protocol
from edgefl.aggregator.checks import check_ask
from edgefl.aggregator.rounds import RoundDone
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.errors import ConfigError
from edgefl.manifest import select
from edgefl.method import Ask, Fused, State
from edgefl.methods.codream import CoDream
from edgefl.methods.codream_fast import CoDreamFast
from edgefl.random_numbers import normals
from edgefl.results.pictures import write_pictures
from edgefl.runs.simulation import Device, Simulation
from edgefl_device.sources import read_splits
from edgefl_device.work.kept import Buffers
from edgefl_device.work.student import Student

Make = Callable[..., CoDream]
DEVICES = ("device-0", "device-1")


@pytest.fixture(scope="module")
def made(once: Callable[..., Path]) -> dict[str, Bundle]:
    """Bundles of two architectures."""
    folder = once("dreamers", export_dreamers)
    return {name: bundles.read(folder / f"{name}.bundle") for name in ("dense", "normalised")}


@pytest.fixture
def make(made: dict[str, Bundle]) -> Make:
    """A small CoDream of a kind, with settings in place of its own."""

    def make(kind: type[CoDream] = CoDream, **settings: Any) -> CoDream:
        small: dict[str, Any] = {
            "epochs": 2,
            "warm_up": 2,
            "dreams": DREAMS,
            "dream_steps": 4,
            "dream_rate": 0.1,
            "distill_epochs": 1,
            "distill_batch_size": 4,
            "train_epochs": 1,
            "batch_size": 10,
            "buffer": 9,
            "adversarial_from": 1,
            "refresh": 2,
            "evaluate": True,
        }
        initial = made["dense"].shared_weights()
        return kind(initial=initial, student=Student(made["dense"]), **(small | settings))

    return make


@pytest.fixture
def rounds(made: dict[str, Bundle], tmp_path: Path) -> Callable[[CoDream], Iterator[RoundDone]]:
    def rounds(method: CoDream) -> Iterator[RoundDone]:
        yield from fleet_of(made, tmp_path / "kept").rounds(
            method, RoundSettings(), seed=0, work=method.student.carry_out
        )

    return rounds


def fleet_of(made: dict[str, Bundle], kept: Path) -> Simulation:
    splits = read_splits("digits")
    assert splits.test is not None
    test = splits.test.take(np.arange(50))
    devices = [
        Device(name, bundle, {"train": splits.train.take(np.arange(30 * i, 30 * i + 30)), "test": test})
        for i, (name, bundle) in enumerate(zip(DEVICES, made, strict=True))
    ]
    return Simulation(made, devices, kept=kept)


def dreaming(method: CoDream, epoch: int = 1) -> State:
    """The method's state where an epoch begins to dream."""
    per_epoch = method.exchanges + 2
    before = replace(method.start(), round=(epoch - 1) * per_epoch)
    return settled(method, method._fall_asleep(replace(before, round=before.round + 1)))


def settled(method: CoDream, state: State) -> State:
    """The state when the student has done what there is to do, which follows from the state alone."""
    while (work := method.work(state)) is not None:
        again = method.work(state)
        assert again is not None and again.tasks == work.tasks
        assert protocol.tensors_to_bytes(again.tensors) == protocol.tensors_to_bytes(work.tensors)
        done = method.student.carry_out(work)
        for value in (*state.tensors.values(), *done.tensors.values(), *done.state.values()):
            value.flags.writeable = False
        state = method.worked(state, done)
    return state


def fused(**tensors: np.ndarray) -> Fused:
    return Fused(tensors, {}, DEVICES, 0)


# --- one step ------------------------------------------------------------------------------------------------------


def test_dreams_move_as_adam_moves_them(make: Make) -> None:
    method = make(adversarial=0.0, dreams_as="float32")
    state = dreaming(method)
    x = torch.tensor(state.tensors["dreams"], requires_grad=True)
    adam = torch.optim.Adam([x], lr=0.1)
    low, high = -0.5 / 0.25, 0.5 / 0.25
    for step in range(method.dream_steps):
        gradient = normals(step, x.shape)
        x.grad = torch.tensor(gradient)
        adam.step()
        with torch.no_grad():
            x.clamp_(low, high)
        state = method.advance(state, fused(dream_gradient=gradient * np.float32(method.gradient_scale)))
        np.testing.assert_allclose(state.tensors["dreams"], x.detach().numpy(), atol=1e-5)


def test_the_student_pulls_dreams_to_what_it_is_unsure_of(make: Make, made: dict[str, Bundle]) -> None:
    method = make(adversarial=3.0)
    state = dreaming(method)
    net = dense()
    weights = {name: torch.tensor(value) for name, value in made["dense"].weights().items() if name[0].isdigit()}
    net.load_state_dict(weights)
    x = torch.tensor(state.tensors["dreams"], requires_grad=True)
    p = torch.softmax(net(x), 1)
    (-(p * p.log()).sum(1).mean()).backward()
    assert x.grad is not None
    after = method.advance(state, fused(dream_gradient=np.zeros_like(state.tensors["dreams"])))
    np.testing.assert_allclose(after.tensors["adam.m"], -0.1 * 3 * x.grad.numpy(), rtol=1e-3, atol=1e-7)
    later = make(adversarial=3.0, adversarial_from=2)
    assert (
        not later.advance(dreaming(later), fused(dream_gradient=np.zeros_like(x.detach().numpy())))
        .tensors["adam.m"]
        .any()
    )


def test_the_student_says_before_each_step_what_it_is_unsure_of_then(make: Make) -> None:
    """Dreams that have moved have another gradient; asked about the same dreams it says the same."""
    method = make(adversarial=1.0)
    state, seen = dreaming(method), []
    for step in range(method.dream_steps):
        seen.append(state.tensors["unsure.dream_gradient"])
        state = settled(method, method.advance(state, fused(dream_gradient=normals(step, seen[0].shape))))
    assert len({gradient.tobytes() for gradient in seen}) == method.dream_steps
    assert "unsure.dream_gradient" not in state.tensors  # nobody needs it to label


def test_the_student_learns_as_devices_do(make: Make) -> None:
    """The same passes over the same dreams, with the same seed, once in each epoch."""
    method = make(adversarial=0.0, seed=5)
    labels = np.full((DREAMS, 10), 0.1, np.float32)
    state = dreaming(method, epoch=2)
    state = replace(state, round=state.round + method.exchanges + 1, tensors={**state.tensors, "labels": labels})
    ask = method.ask(state)
    assert ask is not None and method.work(state) is None
    after = method.advance(state, fused())
    work = method.work(after)
    assert work is not None
    (own,), theirs = work.tasks, ask.tasks[0]
    assert (own.program, own.seed, own.epochs, own.settings) == ("distill", 7, theirs.epochs, theirs.settings)
    assert theirs.seed == own.seed
    np.testing.assert_array_equal(work.tensors["x"], ask.tensors["x"])
    assert method.work(method.worked(after, method.student.carry_out(work))) is None


def test_a_generators_first_dream_is_pictured_on_its_way(make: Make) -> None:
    """As noise makes it and after each of four steps; the last picture is the dream that is labelled."""
    method = make(CoDreamFast, adversarial=0.0)
    state, pictures = dreaming(method), []
    zeros = {f"gradient.{n}": np.zeros_like(v) for n, v in state.tensors.items() if n.startswith("generator.")}
    for step in range(method.dream_steps):
        pictures.append(len(state.tensors["path"]))
        moved = fused(gradient_z=normals(step, state.tensors["z"].shape), **zeros)
        state = settled(method, method.advance(state, moved))
    assert pictures == [1, 2, 3, 4] and len(state.tensors["path"]) == 5
    np.testing.assert_array_equal(state.tensors["path"][-1], method.pixels(state.tensors["dreams"])[0])


def test_one_long_gradient_is_shortened_and_the_others_are_not(make: Make) -> None:
    method = make(adversarial=0.0, clip=1.0, gradient_scale=1.0)
    state = dreaming(method)
    gradient = normals(0, state.tensors["dreams"].shape)
    gradient /= 2 * np.sqrt(np.square(gradient).sum((1, 2, 3), keepdims=True))  # norm 1/2 each
    long = gradient.copy()
    long[0] *= 8  # norm 4
    m = method.advance(state, fused(dream_gradient=long)).tensors["adam.m"]
    np.testing.assert_allclose(m[0], 0.1 * 2 * gradient[0], rtol=1e-5)
    np.testing.assert_allclose(m[1:], 0.1 * gradient[1:], rtol=1e-5)


def test_local_steps_are_subtracted(make: Make) -> None:
    method = make(adversarial=0.0, local_steps=2)
    state = dreaming(method)
    change = 0.01 * normals(1, state.tensors["dreams"].shape)
    after = method.advance(state, fused(dream_change=change)).tensors["dreams"]
    np.testing.assert_allclose(after, np.clip(state.tensors["dreams"] - change, -2, 2), atol=1e-6)


def test_generator_and_latents_move_as_adam_moves_them_and_the_meta_generator_follows(make: Make) -> None:
    method = make(CoDreamFast, adversarial=0.0, generator_rate=0.01, meta_rate=0.25)
    assert isinstance(method, CoDreamFast)
    state = dreaming(method)
    names = [name for name in state.tensors if name.startswith("generator.")]
    z = torch.tensor(state.tensors["z"])
    weights = {name: torch.tensor(state.tensors[name]) for name in names}
    adam = torch.optim.Adam([{"params": [z]}, {"params": list(weights.values()), "lr": 0.01}], lr=0.1)
    for step in range(method.dream_steps):
        for seed, tensor in enumerate((z, *weights.values())):
            tensor.grad = torch.tensor(normals(100 * step + seed, tensor.shape))
        adam.step()
        given = {f"gradient.{n}": w.grad.numpy() for n, w in weights.items() if w.grad is not None}
        given["gradient_z"] = z.grad.numpy()  # type: ignore[union-attr]
        scale = np.float32(method.gradient_scale)
        before = state
        state = settled(method, method.advance(state, fused(**{name: g * scale for name, g in given.items()})))
    np.testing.assert_allclose(state.tensors["z"], z, atol=1e-5)
    for name, weight in weights.items():
        np.testing.assert_allclose(state.tensors["adapted." + name], weight, atol=1e-5)
        meta = before.tensors[name] + 0.25 * (weight.numpy() - before.tensors[name])
        np.testing.assert_allclose(state.tensors[name], meta, atol=1e-5)
    assert np.abs(state.tensors["dreams"]).max() <= 2 and state.tensors["dreams"].std() > 0


def test_labels_are_means_of_probabilities(make: Make) -> None:
    method = make()
    state = replace(dreaming(method), round=1 + method.exchanges)
    p = np.random.default_rng(0).dirichlet(np.ones(10), DREAMS).astype(np.float32)
    after = method.advance(state, fused(probabilities=p * 0.999))
    np.testing.assert_allclose(after.tensors["labels"], p, atol=1e-6)


@pytest.mark.parametrize(("kind", "sent"), [(CoDream, "dream_gradient"), (CoDreamFast, "gradient_z")])
def test_a_fusion_is_of_gradients_and_labels_stay_a_mean(make: Make, kind: type[CoDream], sent: str) -> None:
    chosen = {"name": "trimmed_mean", "trim": 0.2}
    warm_up, *dreams, label, learn = make(kind, fusion=chosen).rehearse()
    for ask in dreams:
        assert sent in ask.tasks[0].send and ask.fusion == chosen
    assert label.tasks[0].send == ("probabilities",)
    assert (warm_up.fusion, label.fusion, learn.fusion) == ("mean", "mean", "mean")


def test_labels_weigh_devices_by_their_examples(make: Make, made: dict[str, Bundle], tmp_path: Path) -> None:
    method = make(epochs=1, evaluate=False)
    fleet = fleet_of(made, tmp_path / "kept")
    second = fleet.devices["device-1"]
    second.feeds = {"train": second.feeds["train"].take(np.arange(10))}
    weights = {
        method.place(done.round).phase: list(done.fused.weights.values())
        for done in fleet.rounds(method, RoundSettings(), seed=0, work=method.student.carry_out)
    }
    assert weights["label"] == [0.75, 0.25]
    assert weights["dream"] == [0.5, 0.5]


# --- what goes out --------------------------------------------------------------------------------------------------


def test_a_seed_stands_for_the_first_dreams(make: Make) -> None:
    method = make()
    ask = method.ask(dreaming(method))
    assert ask is not None and not ask.tensors
    (task,) = ask.tasks
    assert task.feed == "noise" and task.seed is not None
    np.testing.assert_array_equal(normals(task.seed, (DREAMS, 1, 8, 8)), dreaming(method).tensors["dreams"])


def test_dreams_go_out_as_pixels(make: Make) -> None:
    method = make(seeded=False)
    state = dreaming(method)
    ask = method.ask(state)
    assert ask is not None and ask.tensors["x"].dtype == np.uint8
    seen = (ask.tensors["x"] / 255 - 0.5) / 0.25
    np.testing.assert_allclose(seen, np.clip(state.tensors["dreams"], -2, 2), atol=0.5 / 255 / 0.25 + 1e-6)


@pytest.mark.parametrize("dreams_as", ["float32", "uint8", "change"])
def test_devices_see_the_dreams_that_the_aggregator_has(
    make: Make, made: dict[str, Bundle], tmp_path: Path, dreams_as: Any
) -> None:
    method = make(dreams_as=dreams_as, dream_steps=7, refresh=3, epochs=1)
    fleet, seen = fleet_of(made, tmp_path), 0
    state = method.start()
    for done in fleet.rounds(method, RoundSettings(), seed=0, work=method.student.carry_out):
        place = method.place(done.round)
        if place.phase == "dream" and dreams_as == "change":
            buffers = Buffers(tmp_path / DEVICES[0], round=done.round + 1)
            np.testing.assert_array_equal(buffers.examples("current", "test")["x"], state.tensors["dreams"])
            seen += 1
        state = done.state
    assert seen == (7 if dreams_as == "change" else 0)
    assert state.round == method.rounds


# --- whole runs -----------------------------------------------------------------------------------------------------


def test_devices_and_student_learn_from_dreams_and_no_weight_travels(
    make: Make, rounds: Callable[[CoDream], Iterator[RoundDone]]
) -> None:
    method = make()
    sent: set[str] = set()
    first = method.start()
    for done in rounds(method):
        sent |= set(done.fused.tensors)
        phase = method.place(done.round).phase
        if phase == "label":
            dreamed = method.pixels(done.state.tensors["dreams"])
        if phase == "learn":
            assert done.fused.metrics["distill.examples"] > 0
            assert 0 < done.fused.metrics["likeness.likeness_most"] <= 1 + 1e-6
        assert list(done.fused.measured) == list(DEVICES)
    assert sent == {"dream_gradient", "probabilities"}
    assert done.state.round == method.rounds == 1 + 2 * (4 + 2)
    assert not np.array_equal(done.state.tensors["student.1.weight"], first.tensors["student.1.weight"])
    assert len(done.state.tensors["buffer.x"]) == len(done.state.tensors["buffer.y"]) == 9  # of 12 dreams the newest
    np.testing.assert_array_equal(done.state.tensors["buffer.x"][-DREAMS:], dreamed)


def as_bytes(ask: Ask) -> bytes:
    return msgspec.json.encode((ask.tasks, ask.weight, ask.durable)) + protocol.tensors_to_bytes(ask.tensors)


@pytest.mark.parametrize("kind", [CoDream, CoDreamFast])
def test_the_laws_of_methods_hold_in_every_round(
    make: Make, made: dict[str, Bundle], tmp_path: Path, kind: type[CoDream]
) -> None:
    """Asks and states follow from the state alone, every bundle can carry out every ask, and an ask fits the wire."""
    method = make(kind, dreams_as="change")
    state = before = method.start()
    assert all(np.array_equal(value, method.start().tensors[name]) for name, value in state.tensors.items())
    for done in fleet_of(made, tmp_path).rounds(method, RoundSettings(), seed=0, work=method.student.carry_out):
        ask, again = method.ask(before), method.ask(before)
        assert ask is not None and again is not None and as_bytes(ask) == as_bytes(again)
        for bundle in made.values():
            check_ask(ask, bundle.manifest, kept=("dreams", "current"))
        sent = protocol.Announcement(1, 0, 0, "0" * 16, 1.0, ["pi-1"], list(ask.tasks), protocol.BlobRef("a" * 64, 1))
        assert protocol.decode(protocol.encode(sent))[0] == sent
        declared = [pattern for task in ask.tasks for pattern in task.send]
        assert set(select(done.fused.tensors, declared)) == set(done.fused.tensors)
        for value in (*before.tensors.values(), *done.fused.tensors.values()):
            value.flags.writeable = False
        state = settled(method, method.advance(before, done.fused))
        assert state.round == before.round + 1 and state.tensors.keys() == done.state.tensors.keys()
        assert all(np.array_equal(value, done.state.tensors[name]) for name, value in state.tensors.items())
        before = state
    assert method.ask(state) is None


@pytest.mark.parametrize(
    ("changed", "kinds"), [({}, 5), ({"alone": True}, 2), ({"local_steps": 2}, 5), ({"dreams_as": "change"}, 5)]
)
def test_one_ask_of_each_kind_is_rehearsed(
    make: Make, made: dict[str, Bundle], changed: dict[str, Any], kinds: int
) -> None:
    for kind in (CoDream, CoDreamFast) if "local_steps" not in changed else (CoDream,):
        asks = make(kind, **changed).rehearse()
        assert len(asks) == kinds and asks[0].about == "warm up"
        for ask in asks:
            for bundle in made.values():
                check_ask(ask, bundle.manifest, kept=("dreams", "current"))


@pytest.mark.parametrize("changed", [{"local_steps": 2}, {"encoding": "float32", "seeded": False}, {"alone": True}])
def test_a_run_ends_with_every_setting(
    make: Make, rounds: Callable[[CoDream], Iterator[RoundDone]], changed: dict[str, Any]
) -> None:
    method = make(**changed)
    *_, last = rounds(method)
    assert last.state.round == method.rounds
    assert all(np.isfinite(value).all() for value in last.state.tensors.values())
    if method.alone:
        assert "buffer.x" not in last.state.tensors
        assert last.round == method.epochs


def test_resumed_in_the_middle_of_dreams_the_dreams_are_the_same(
    make: Make, made: dict[str, Bundle], tmp_path: Path
) -> None:
    method = make()
    unbroken = fleet_of(made, tmp_path / "unbroken")
    *_, end = unbroken.rounds(method, RoundSettings(), seed=0, work=method.student.carry_out)

    fleet = fleet_of(made, tmp_path / "broken")
    before = None
    for done in fleet.rounds(method, RoundSettings(), seed=0, work=method.student.carry_out):
        if method.place(done.state.round) == (1, "dream", 3):  # two steps after one that was saved, after step 0
            break
        if method.place(done.state.round) == (1, "dream", 1):
            before = done.state
    assert before is not None
    *_, last = fleet.rounds(method, RoundSettings(), seed=0, work=method.student.carry_out, state=before)
    for name, value in end.state.tensors.items():
        np.testing.assert_array_equal(last.state.tensors[name], value, err_msg=name)


@pytest.mark.parametrize("kind", [CoDream, CoDreamFast])
def test_a_resume_may_have_more_epochs_than_the_run_had(
    make: Make, made: dict[str, Bundle], tmp_path: Path, kind: type[CoDream]
) -> None:
    """What a run of one epoch ends with is what one of two has then."""
    two, one = make(kind), make(kind, epochs=1)
    *_, unbroken = fleet_of(made, tmp_path / "two").rounds(two, RoundSettings(), seed=0, work=two.student.carry_out)
    fleet = fleet_of(made, tmp_path / "one")
    *_, middle = fleet.rounds(one, RoundSettings(), seed=0, work=one.student.carry_out)
    *_, end = fleet.rounds(two, RoundSettings(), seed=0, work=two.student.carry_out, state=middle.state)
    assert end.state.tensors.keys() == unbroken.state.tensors.keys()
    for name, value in unbroken.state.tensors.items():
        np.testing.assert_array_equal(end.state.tensors[name], value, err_msg=name)


# --- pictures and refusals ------------------------------------------------------------------------------------------


def test_an_epoch_leaves_its_dreams_as_pictures(
    make: Make, rounds: Callable[[CoDream], Iterator[RoundDone]], tmp_path: Path
) -> None:
    method = make()
    folder = tmp_path / "pictures"
    for done in rounds(method):
        write_pictures(folder, method.pictures(done.state))
        if method.place(done.round).phase == "label":
            dreams = method.pixels(done.state.tensors["dreams"])
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"epoch-00{e}{kind}.png" for e in (1, 2) for kind in ("-path", "")]
    sheet = np.asarray(Image.open(io.BytesIO((folder / "epoch-002.png").read_bytes())))
    np.testing.assert_array_equal(sheet[0:64:8, 0:64:8, 0], dreams[0, 0])  # magnified eight times
    path = np.asarray(Image.open(folder / "epoch-002-path.png"))
    np.testing.assert_array_equal(path[0:64:8, -66:-2:8, 0], dreams[0, 0])  # its end


def test_a_dream_that_is_an_image_of_a_device_is_warned_of(make: Make) -> None:
    method = make(likeness_limit=0.9)
    found = {"device-0": {"likeness.likeness_most": 0.5}, "device-1": {"likeness.likeness_most": 0.97}}
    assert "image of device-1: cosine 0.970, over 0.9" in str(method.warning(found))
    assert method.warning({"device-0": found["device-0"]}) is None
    assert method.warning({}) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"student": None}, "needs a student"),
        ({"initial": {}}, "cannot dream"),
        ({"dreams": DREAMS + 1}, f"but the bundles compare {DREAMS}"),
        ({"initial": {"dreams": np.zeros((DREAMS, 1, 8, 8), np.uint8)}}, "have no generator"),
    ],
)
def test_what_cannot_begin_is_refused(make: Make, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(make(CoDreamFast), **changed).start()


def test_exchanges_are_whole(make: Make) -> None:
    with pytest.raises(ValueError, match="multiple of local_steps"):
        make(local_steps=3)
