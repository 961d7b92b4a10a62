"""Laws that every method passes, each checked with every method in METHODS; then FedAvg against its formula.

CoDream's rounds are of several kinds: test_codream.py holds every one of them to these laws.

A new method adds one line to `CASES`, and a formula of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from emulated import Devices, fuse
from records import record

from edgefl import protocol
from edgefl.aggregator.checks import check_ask
from edgefl.aggregator.norms import Usual, norm_of, too_large
from edgefl.aggregator.store import Store
from edgefl.aggregator.weights import rule_of
from edgefl.bundle import Bundle
from edgefl.errors import ConfigError
from edgefl.manifest import select
from edgefl.method import Ask, Fused, Keep, Method, Reply, State, Task
from edgefl.methods import METHODS
from edgefl.methods.fedavg import FedAvg
from edgefl_device.data.dataset import Dataset

ROUNDS = 3


def make_data() -> dict[str, Dataset]:
    """Three devices with 2, 5 and 9 examples of y = [1, -2] x, disturbed."""
    rng = np.random.default_rng(3)
    data = {}
    for name, size in (("pi-1", 2), ("pi-2", 5), ("pi-3", 9)):
        x = rng.normal(size=(size, 2)).astype(np.float32)
        data[name] = Dataset(x, (x @ [1, -2] + rng.normal(size=size)).astype(np.float32))
    return data


def make_classes() -> dict[str, Dataset]:
    """The same devices with two classes each, of four that there could be."""
    rng = np.random.default_rng(4)
    data = {}
    for i, (name, examples) in enumerate(DATA.items()):
        y = rng.integers(i, i + 2, len(examples))
        y[:2] = i, i + 1
        data[name] = Dataset(examples.features, y)
    return data


DATA = make_data()
CLASSES = make_classes()


@dataclass(frozen=True)
class Case:
    """A method with settings, and the bundle of its fleet: a name in `make_bundle`."""

    method: str
    bundle: str
    settings: dict[str, Any]


# At least one entry per method; more where settings change what travels.
CASES = {
    "fedavg": Case("fedavg", "regression", {"batch_size": 2, "epochs": 2}),
    "fedavg, deltas": Case("fedavg", "regression", {"batch_size": 2, "send_as": "delta", "decay": 0.5}),
    "fedavg, float16, evaluated": Case(
        "fedavg", "regression", {"encoding": "float16", "evaluate": True, "weight": "equal"}
    ),
    "fedavg, median": Case("fedavg", "regression", {"batch_size": 2, "send_as": "delta", "fusion": "median"}),
    "fedavg, trimmed": Case("fedavg", "regression", {"fusion": {"name": "trimmed_mean", "trim": 0.34}}),
    "fedavg of the body": Case("fedavg", "layers", {"batch_size": 2, "share": ["body.*"], "evaluate": True}),
    "fedprox": Case("fedprox", "anchored", {"batch_size": 2, "epochs": 2, "proximal": 0.5}),
    "fedavgm": Case("fedavgm", "regression", {"batch_size": 2, "momentum": 0.3}),
    "fedadagrad": Case("fedadagrad", "regression", {"batch_size": 2, "server_learning_rate": 0.1}),
    "fedadam": Case("fedadam", "regression", {"batch_size": 2}),
    "fedyogi": Case("fedyogi", "regression", {"batch_size": 2, "send_as": "value", "beta_1": 0.0}),
    "fednova": Case("fednova", "regression", {"batch_size": 2, "epochs": 2}),
    "fednova, momentum": Case("fednova", "pushed", {"batch_size": 2, "momentum": 0.5, "weight": "equal"}),
    "scaffold": Case("scaffold", "controlled", {"batch_size": 2, "epochs": 2, "devices": 4}),
    "scaffold, median": Case("scaffold", "controlled", {"batch_size": 2, "devices": 4, "fusion": "median"}),
    "feddyn": Case("feddyn", "shifted", {"batch_size": 2, "epochs": 2, "devices": 4, "alpha": 0.1}),
    "fedmrl": Case("fedmrl", "layers", {"batch_size": 2, "share": ["body.*"]}),
    "lg_fedavg": Case("lg_fedavg", "layers", {"batch_size": 2, "share": ["head.*"], "send_as": "delta"}),
    "deq_fl": Case("deq_fl", "solved", {"learning_rate": 0.01, "max_steps": 3, "evaluate": True}),
    "deq_fl, by steps": Case(
        "deq_fl", "solved", {"learning_rate": 0.01, "send_as": "delta", "weight": "examples*steps"}
    ),
    "fedproto": Case("fedproto", "shallow", {"batch_size": 2, "epochs": 2, "evaluate": True}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def bundle(case: Case, make_bundle: Callable[[str], Bundle]) -> Bundle:
    return make_bundle(case.bundle)


@pytest.fixture
def method(case: Case, bundle: Bundle) -> Method:
    return make(case.method, bundle, **case.settings)


def make(name: str, bundle: Bundle, **settings: Any) -> Any:
    """A method for a bundle, as a run file makes it."""
    return msgspec.convert(
        {"initial": bundle.shared_weights(), "rounds": ROUNDS, "learning_rate": 0.1} | settings, METHODS[name]
    )


def test_every_method_has_a_case() -> None:
    assert {case.method for case in CASES.values()} == set(METHODS) - {"codream", "codream_fast"}


def fleet(bundle: Bundle) -> Devices:
    """Devices that have done nothing yet, with data that the bundle takes."""
    return Devices(bundle, DATA if bundle.manifest.data.classes is None else CLASSES)


def carry_on(method: Method, bundle: Bundle, state: State, rounds: int = ROUNDS) -> State:
    """The state some rounds later, of devices that have done nothing before."""
    return fleet(bundle).carry_on(method, state, rounds)


def train(bundle: Bundle, ask: Ask, number: int, devices: Iterable[str] = DATA) -> list[Reply]:
    """Replies of devices that have done nothing before."""
    return fleet(bundle).replies(ask, number, devices)


def frozen(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    for value in tensors.values():
        value.flags.writeable = False
    return tensors


def assert_equal(got: State, want: State) -> None:
    """The same bits."""
    assert (got.round, dict(got.numbers)) == (want.round, dict(want.numbers))
    assert got.tensors.keys() == want.tensors.keys()
    for name, value in want.tensors.items():
        assert got.tensors[name].dtype == value.dtype
        assert got.tensors[name].shape == value.shape
        assert got.tensors[name].tobytes() == value.tobytes()


def as_bytes(ask: Ask) -> bytes:
    """Everything of an ask."""
    weight = rule_of(ask.weight).name
    return msgspec.json.encode((ask.tasks, ask.fusion, weight)) + protocol.tensors_to_bytes(ask.tensors)


# --- laws ---------------------------------------------------------------------------------------------------------


def test_asking_twice_gives_equal_asks(method: Method, bundle: Bundle) -> None:
    for rounds in range(ROUNDS):
        state = carry_on(method, bundle, method.start(), rounds)
        first, second = method.ask(state), method.ask(state)
        assert first is not None and second is not None
        assert as_bytes(first) == as_bytes(second) and first.weight == second.weight


def test_starting_twice_gives_equal_states(method: Method) -> None:
    assert_equal(method.start(), method.start())


def test_the_run_ends_after_its_rounds(method: Method, bundle: Bundle) -> None:
    state = carry_on(method, bundle, method.start())
    assert state.round == ROUNDS
    assert method.ask(state) is None


def test_advancing_counts_one_round_and_leaves_its_arguments_alone(method: Method, bundle: Bundle) -> None:
    state = method.start()
    ask = method.ask(state)
    assert ask is not None
    fused = fuse(ask, train(bundle, ask, 0))
    frozen(state.tensors), frozen(fused.tensors)
    before = [value.tobytes() for value in (*state.tensors.values(), *fused.tensors.values())]
    after = method.advance(state, fused)
    assert (state.round, after.round) == (0, 1)
    assert [value.tobytes() for value in (*state.tensors.values(), *fused.tensors.values())] == before
    assert_equal(method.advance(state, fused), after)
    assert any(after.tensors[name].tobytes() != value.tobytes() for name, value in state.tensors.items())


def test_names_dtypes_and_shapes_never_change(method: Method, bundle: Bundle) -> None:
    start, end = method.start(), carry_on(method, bundle, method.start())
    assert {n: (v.dtype, v.shape) for n, v in start.tensors.items()} == {
        n: (v.dtype, v.shape) for n, v in end.tensors.items()
    }


@pytest.mark.parametrize("saved_after", range(ROUNDS))
def test_save_load_go_on_equals_an_unbroken_run(
    method: Method, bundle: Bundle, tmp_path: Path, saved_after: int
) -> None:
    unbroken = carry_on(method, bundle, method.start())
    devices = fleet(bundle)
    state = devices.carry_on(method, method.start(), saved_after)
    store = Store.create(tmp_path / "run", "")
    store.save_round(state, record(state.round))
    store.close()
    resumed = Store.open(tmp_path / "run")
    loaded = resumed.load_state()
    resumed.close()
    assert loaded is not None
    assert_equal(loaded, state)
    assert_equal(devices.carry_on(method, loaded, ROUNDS - saved_after), unbroken)


def test_ordinary_replies_are_not_too_large_for_each_other(method: Method, bundle: Bundle) -> None:
    """Devices of 2, 5 and 9 examples: of one round, and beside what was usual before."""
    devices, state, usual = fleet(bundle), method.start(), Usual()
    for number in range(ROUNDS):
        ask = method.ask(state)
        assert ask is not None
        replies = devices.replies(ask, number)
        norms = {reply.device: norm_of(reply, ask) for reply in replies}
        assert too_large(norms, 10) == [] and min(norms.values()) > 0
        assert number == 0 or max(norms.values()) < 10 * usual.of(ask)
        usual.note(ask, norms.values())
        state = method.advance(state, fuse(ask, replies))


def test_the_order_of_replies_changes_nothing_beyond_rounding(method: Method, bundle: Bundle) -> None:
    state = method.start()
    ask = method.ask(state)
    assert ask is not None
    replies = train(bundle, ask, 0)
    expected = method.advance(state, fuse(ask, replies))
    for seed in range(5):
        random.Random(seed).shuffle(replies)
        got = method.advance(state, fuse(ask, replies))
        for name, value in expected.tensors.items():
            np.testing.assert_array_max_ulp(got.tensors[name], value, 1)


def test_only_declared_names_are_sent(method: Method, bundle: Bundle) -> None:
    """What devices send is what the tasks' `send` says, and nothing of it is local to a device."""
    ask = method.ask(method.start())
    assert ask is not None
    local = {t.name for t in bundle.manifest.state} - {t.name for t in bundle.manifest.shared()}
    declared = [pattern for task in ask.tasks for pattern in task.send]
    for reply in train(bundle, ask, 0):
        assert reply.tensors
        assert set(select(reply.tensors, declared)) == set(reply.tensors)
        assert not local & set(reply.tensors)


def test_every_name_exists_in_the_manifest(method: Method, bundle: Bundle) -> None:
    manifest = bundle.manifest
    state = {t.name for t in manifest.state}
    ask = method.ask(method.start())
    assert ask is not None
    assert set(ask.tensors) <= state
    for task in ask.tasks:
        program = manifest.program(task.program)
        outputs = {o.name for o in program.outputs}
        assert set(task.settings) <= set(program.settings()) | {i.name for i in program.inputs}
        for pattern in task.load:
            assert select(ask.tensors, [pattern]), pattern
        for pattern in task.send:
            assert select(state | outputs, [pattern]), pattern
        for name in task.reset:
            assert "*" in name or name in state


def test_an_ask_fits_the_wire(method: Method) -> None:
    ask = method.ask(method.start())
    assert ask is not None
    ref = protocol.BlobRef("a" * 64, 1)
    sent = protocol.Announcement(1, 0, 0, "0" * 16, 1.0, ["pi-1"], list(ask.tasks), ref)
    assert protocol.decode(protocol.encode(sent))[0] == sent


# --- FedAvg -------------------------------------------------------------------------------------------------------


def fedavg(bundle: Bundle, **settings: Any) -> FedAvg:
    return FedAvg({"w": bundle.weights()["w"]}, **({"rounds": ROUNDS, "batch_size": 0} | settings))


def gradient_step(w: Any, devices: Iterable[str], rate: float) -> Any:
    """w - rate * 2/n X^T (X w - y) on the examples of all these devices together."""
    x = np.concatenate([DATA[name].features for name in devices]).astype(np.float64)
    y = np.concatenate([DATA[name].labels for name in devices]).astype(np.float64)
    return w - rate * 2 / len(x) * x.T @ (x @ w - y)


@pytest.mark.parametrize("send_as", ["value", "delta"])
def test_one_epoch_of_one_batch_is_one_centralised_gradient_step(regression: Bundle, send_as: str) -> None:
    """FedSGD (McMahan et al. 2017, section 2): sum_k n_k/n (w - rate g_k) = w - rate grad f(w)."""
    method = fedavg(regression, learning_rate=0.1, send_as=send_as)
    state, w = method.start(), np.zeros(2)
    for _ in range(ROUNDS):
        state = carry_on(method, regression, state, 1)
        w = gradient_step(w, DATA, 0.1)
        np.testing.assert_allclose(state.tensors["w"], w, rtol=1e-6)
    assert np.abs(w).min() > 0.1


def test_without_a_device_it_is_the_step_of_the_others(regression: Bundle) -> None:
    method = fedavg(regression, learning_rate=0.1)
    ask = method.ask(method.start())
    assert ask is not None
    state = method.advance(method.start(), fuse(ask, train(regression, ask, 0, ["pi-1", "pi-3"])))
    np.testing.assert_allclose(state.tensors["w"], gradient_step(np.zeros(2), ["pi-1", "pi-3"], 0.1), rtol=1e-6)
    assert not np.allclose(state.tensors["w"], gradient_step(np.zeros(2), DATA, 0.1), rtol=1e-2)


def test_values_and_deltas_agree_to_rounding(regression: Bundle) -> None:
    states = [
        carry_on(m, regression, m.start())
        for m in (fedavg(regression, batch_size=2, epochs=3, learning_rate=0.1, send_as=s) for s in ("value", "delta"))
    ]
    np.testing.assert_allclose(states[0].tensors["w"], states[1].tensors["w"], rtol=1e-5)


def test_the_learning_rate_decays_by_round_and_the_shuffle_changes(regression: Bundle) -> None:
    method = fedavg(regression, learning_rate=0.8, decay=0.5, seed=40)
    told = []
    for number in range(ROUNDS):
        ask = method.ask(State(number, method.start().tensors))
        assert ask is not None
        told.append((ask.tasks[-1].settings["learning_rate"], ask.tasks[-1].seed))
    assert told == [(0.8, 40), (0.4, 41), (0.2, 42)]


def test_settings_of_the_bundle_unless_the_run_says_another(regression: Bundle) -> None:
    silent = FedAvg({"w": np.zeros(2, np.float32)})
    spoken = FedAvg({"w": np.zeros(2, np.float32)}, learning_rate=0.5, settings={"momentum": 0.5})
    for method, settings in ((silent, {}), (spoken, {"learning_rate": 0.5, "momentum": 0.5})):
        ask = method.ask(method.start())
        assert ask is not None and ask.tasks[0].settings == settings
        check_ask(ask, regression.manifest)
    wrong = FedAvg({"w": np.zeros(2, np.float32)}, settings={"clip_norm": 1.0})
    ask = wrong.ask(wrong.start())
    assert ask is not None
    with pytest.raises(ConfigError, match="sets 'clip_norm', but program 'train' of bundle 'regression' has no such"):
        check_ask(ask, regression.manifest)


def test_an_ask_that_no_device_could_carry_out_is_refused_before_the_run(regression: Bundle) -> None:
    manifest = regression.manifest
    train = manifest.program("train")
    method = FedAvg({"w": np.zeros(2, np.float32)}, batch_size=32)
    ask = method.ask(method.start())
    assert ask is not None
    x, *rest = train.inputs
    fixed = msgspec.structs.replace(train, inputs=(msgspec.structs.replace(x, shape=(8, 2)), *rest))
    with pytest.raises(ConfigError, match="asks for batches of 32, but program 'train' .* takes at most 8"):
        check_ask(ask, msgspec.structs.replace(manifest, programs={"train": fixed}))
    anchored = msgspec.structs.replace(train, writes={"w": "w_next"})
    setter = msgspec.structs.replace(train, writes={"moment": "moment_next"}, reads=())
    with pytest.raises(ConfigError, match="reads 'moment', which only program anchor sets") as refused:
        check_ask(ask, msgspec.structs.replace(manifest, programs={"train": anchored, "anchor": setter}))
    assert refused.value.hint is not None and "a method that asks for 'anchor'" in refused.value.hint


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([Task("evaluate", feed="kept:dreams")], "fed 'kept:dreams', but no task keeps anything in 'dreams'"),
        ([Task("evaluate", feed="noise", seed=1)], "fed noise, but the program wants labels as well"),
        ([Task("evaluate", feed="announced")], "needs the tensor 'y', which the method does not announce"),
        ([Task("evaluate", feed="dreams")], "what no device does: task 1 ('evaluate'): unknown feed 'dreams'"),
        ([Task("evaluate", feed="kept:../up")], "a buffer cannot be called '../up'"),
    ],
)
def test_examples_that_nobody_has_are_refused_before_the_run(
    regression: Bundle, tasks: list[Task], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_ask(Ask(tuple(tasks), {"x": np.zeros((1, 2), np.float32)}), regression.manifest)
    assert message in refused.value.message


def test_what_an_earlier_task_or_ask_keeps_can_be_fed(regression: Bundle) -> None:
    x = {"x": np.zeros((1, 2), np.float32)}
    feed = Task("evaluate", feed="kept:dreams")
    check_ask(Ask((feed,), x), regression.manifest, kept=["dreams"])
    check_ask(Ask((Task("evaluate", feed="kept:dreams", keep=Keep("dreams", 8)),), x), regression.manifest)
    with pytest.raises(ConfigError, match="needs the tensor 'x'"):
        check_ask(Ask((Task("evaluate", feed="kept:dreams", keep=Keep("dreams", 8)),), {}), regression.manifest)


def test_a_state_keeps_its_dtype_whatever_travelled() -> None:
    """float16 is widened at the door; a float16 tensor must be announced as one again."""
    method = FedAvg({"w": np.ones(2, np.float16)})
    state = method.advance(method.start(), Fused({"w": np.array([2, 3], np.float32)}, {}, ("a",), 1))
    assert state.tensors["w"].dtype == np.float16
    np.testing.assert_array_equal(state.tensors["w"], [2, 3])


def test_a_name_with_brackets_is_sent() -> None:
    method = FedAvg({"blocks[0].w": np.ones(1, np.float32)})
    ask = method.ask(method.start())
    assert ask is not None
    assert select(["blocks[0].w"], ask.tasks[0].send) == ["blocks[0].w"]
