"""Each method but FedAvg against its formula, on real programs. What they have in common is in test_laws.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from emulated import Devices, fuse

from edgefl.asks import check_ask
from edgefl.bundle import Bundle
from edgefl.errors import BundleError, ConfigError
from edgefl.method import State
from edgefl.methods import METHODS
from edgefl_device.dataset import Dataset

ROUNDS = 3
BODY, HEAD = ("body.bias", "body.weight"), ("head.bias", "head.weight")

MakeBundle = Callable[[str], Bundle]


def make_data() -> dict[str, Dataset]:
    """Three devices with 2, 5 and 9 examples, each of a function of its own."""
    rng = np.random.default_rng(5)
    data = {}
    for i, size in enumerate((2, 5, 9), 1):
        x = rng.normal(size=(size, 2)).astype(np.float32)
        data[f"pi-{i}"] = Dataset(x, (x @ [1, -2] + i).astype(np.float32))
    return data


DATA = make_data()


def make(name: str, bundle: Bundle, **settings: Any) -> Any:
    chosen = {"initial": bundle.shared_weights(), "rounds": ROUNDS, "batch_size": 2, "learning_rate": 0.1} | settings
    return msgspec.convert(chosen, METHODS[name])


def finished(method: Any, devices: Devices) -> State:
    return devices.carry_on(method, method.start(), ROUNDS)


def assert_close(got: State, want: State, rtol: float = 1e-5) -> None:
    assert got.tensors.keys() == want.tensors.keys()
    for name, value in want.tensors.items():
        np.testing.assert_allclose(got.tensors[name], value, rtol=rtol, atol=1e-6, err_msg=name)


# --- what is shared -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedavg", "fedmrl"])
def test_share_chooses_what_is_announced_loaded_sent_and_averaged(make_bundle: MakeBundle, name: str) -> None:
    bundle = make_bundle("layers")
    method = make(name, bundle, share=["body.*"])
    devices = Devices(bundle, DATA)
    ask = method.ask(method.start())
    assert tuple(sorted(ask.tensors)) == BODY
    for reply in devices.replies(ask, 0):
        assert tuple(sorted(reply.tensors)) == BODY
    assert tuple(sorted(finished(method, devices).tensors)) == BODY


def test_a_share_that_matches_nothing_is_refused_before_the_run(make_bundle: MakeBundle) -> None:
    method = make("fedavg", make_bundle("layers"), share=["body.*", "haed.*"])
    with pytest.raises(ConfigError, match=r"\[method\] share: 'haed.\*' matches no shared tensor") as refused:
        method.start()
    assert refused.value.hint == "did you mean 'head.bias'?"


def test_everything_shared_is_fedavg_of_everything(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("layers")
    states = [finished(make("fedavg", bundle, **kind), Devices(bundle, DATA)) for kind in ({}, {"share": ["[bh]*"]})]
    assert_close(*states, rtol=0)


# --- LG-FedAvg ----------------------------------------------------------------------------------------------------


def test_lg_fedavg_averages_the_heads_and_every_body_is_the_devices_own(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("layers")
    method = make("lg_fedavg", bundle, share=["head.*"])
    devices = Devices(bundle, DATA)
    state, earlier = method.start(), bundle.weights()
    for _ in range(ROUNDS):
        ask = method.ask(state)
        replies = devices.replies(ask, state.round)
        state = method.advance(state, fuse(ask, replies))
        for name in HEAD:
            assert not any(np.array_equal(reply.tensors[name], state.tensors[name]) for reply in replies)
            mean = np.average([r.tensors[name] for r in replies], axis=0, weights=[len(d) for d in DATA.values()])
            np.testing.assert_allclose(state.tensors[name], mean, rtol=1e-6)
        bodies = [devices.kept[name]["body.weight"] for name in DATA]
        assert len({body.tobytes() for body in bodies}) == len(DATA)
        assert not any(np.array_equal(body, earlier["body.weight"]) for body in bodies)
        earlier = devices.kept["pi-1"]


def test_a_body_of_ones_own_goes_on_from_round_to_round(make_bundle: MakeBundle) -> None:
    """One device alone is its own mean: three rounds are three epochs in a row, body and head."""
    bundle = make_bundle("layers")
    alone = {"pi-3": DATA["pi-3"]}
    lg, plain = (make(name, bundle, share=share) for name, share in (("lg_fedavg", ["head.*"]), ("fedavg", ["*"])))
    devices = Devices(bundle, alone)
    state, want = finished(lg, devices), finished(plain, Devices(bundle, alone))
    for name, value in want.tensors.items():
        got = state.tensors[name] if name in HEAD else devices.kept["pi-3"][name]
        np.testing.assert_array_equal(got, value)


def test_evaluation_is_of_the_announced_head_on_ones_own_body(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("layers")
    method = make("lg_fedavg", bundle, share=["head.*"], evaluate=True)
    devices = Devices(bundle, DATA)
    state = devices.carry_on(method, method.start(), 2)
    before = {name: dict(kept) for name, kept in devices.kept.items()}
    for reply in devices.replies(method.ask(state), 2):
        w = before[reply.device] | dict(state.tensors)
        x, y = DATA[reply.device].features, DATA[reply.device].labels
        predicted = np.tanh(x @ w["body.weight"].T + w["body.bias"]) @ w["head.weight"][0] + w["head.bias"]
        np.testing.assert_allclose(reply.metrics["evaluate.loss"], np.mean((predicted - y) ** 2), rtol=1e-5)


def test_lg_fedavg_needs_to_know_which_layers_are_shared(make_bundle: MakeBundle) -> None:
    with pytest.raises(msgspec.ValidationError, match="share is missing"):
        make("lg_fedavg", make_bundle("layers"))


# --- FedProx ------------------------------------------------------------------------------------------------------


def test_fedprox_without_a_pull_is_fedavg(make_bundle: MakeBundle) -> None:
    prox = make("fedprox", make_bundle("anchored"), epochs=3, proximal=0.0)
    avg = make("fedavg", make_bundle("layers"), epochs=3)
    assert_close(
        finished(prox, Devices(make_bundle("anchored"), DATA)), finished(avg, Devices(make_bundle("layers"), DATA))
    )


def test_the_stronger_fedprox_pulls_the_nearer_devices_stay(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("anchored")
    moved = []
    for mu in (0.0, 1.0, 5.0):
        method = make("fedprox", bundle, epochs=5, proximal=mu)
        replies = Devices(bundle, DATA).replies(method.ask(method.start()), 0)
        moved.append([sum(np.square(v - method.initial[n]).sum() for n, v in r.tensors.items()) for r in replies])
    assert (np.diff(moved, axis=0) < 0).all(), moved


def test_fedprox_anchors_before_it_trains_and_a_bundle_without_an_anchor_is_refused(make_bundle: MakeBundle) -> None:
    for proximal, settings in ((None, {"learning_rate": 0.1}), (0.1, {"learning_rate": 0.1, "proximal": 0.1})):
        method = make("fedprox", make_bundle("anchored"), proximal=proximal, evaluate=True)
        ask = method.ask(method.start())
        evaluate, anchor, train = ask.tasks
        assert (evaluate.program, anchor.program, train.program) == ("evaluate", "anchor", "train")
        assert (anchor.load, anchor.steps, anchor.send) == (("*",), 1, ())
        assert train.settings == settings
        check_ask(ask, make_bundle("anchored").manifest)
    with pytest.raises(BundleError, match="has no program 'anchor'"):
        check_ask(ask, make_bundle("layers").manifest)
