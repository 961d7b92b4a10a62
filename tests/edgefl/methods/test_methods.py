"""Each method but FedAvg against its formula, on real programs. What they have in common is in test_laws.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from emulated import Devices, fuse

from edgefl.aggregator.checks import check_ask
from edgefl.bundle import Bundle
from edgefl.errors import BundleError, ConfigError, RemoteProtocolError
from edgefl.method import Fused, Reply, State
from edgefl.methods import METHODS, paper_of
from edgefl.random_numbers import order_of
from edgefl_device.data.dataset import Dataset

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


# --- FedAdagrad, FedAdam and FedYogi ------------------------------------------------------------------------------

ADAPTIVE = {"server_learning_rate": 0.5, "beta_1": 0.8, "tau": 0.01}
SQUARES = {"fedadagrad": {}, "fedadam": {"beta_2": 0.9}, "fedyogi": {"beta_2": 0.9}}


def adaptive(name: str, changes: list[float]) -> float:
    """x after these mean changes, from 1: Algorithm 2 of Reddi et al. 2021, line by line for one number."""
    x, m, v = 1.0, 0.0, 0.01**2
    for d in changes:
        m = 0.8 * m + (1 - 0.8) * d
        adagrad, adam, yogi = v + d**2, 0.9 * v + (1 - 0.9) * d**2, v - (1 - 0.9) * d**2 * np.sign(v - d**2)
        v = {"fedadagrad": adagrad, "fedadam": adam, "fedyogi": yogi}[name]
        x = x + 0.5 * m / (v**0.5 + 0.01)
    return x


@pytest.mark.parametrize("name", SQUARES)
@pytest.mark.parametrize("send_as", ["delta", "value"])
def test_the_adaptive_steps_are_the_papers(name: str, send_as: str) -> None:
    """Large and small changes in turn: Yogi's second moment rises and falls."""
    told = [[0.3, 0.001, -0.02, 0.5], [-0.1, 0.0, 0.0, 0.004]]
    settings = {"initial": {"w": np.ones(2, np.float32)}, "send_as": send_as, "rounds": 4, **ADAPTIVE, **SQUARES[name]}
    method = msgspec.convert(settings, METHODS[name])
    state = method.start()
    for d in np.array(told, np.float32).T:
        sent = d if send_as == "delta" else state.tensors["w"] + d
        state = method.advance(state, Fused({"w": sent}, {}, ("pi-1",), 1))
    np.testing.assert_allclose(state.tensors["w"], [adaptive(name, d) for d in told], rtol=1e-5)
    assert list(method.ask(State(0, state.tensors)).tensors) == ["w"]  # the moments stay on the aggregator


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_the_first_adaptive_step_of_a_fleet(make_bundle: MakeBundle, name: str) -> None:
    """x + eta (1 - beta_1) d / (sqrt(v) + tau) with d from FedAvg; v_0 from v_{-1} = tau^2, above or below d^2."""
    bundle = make_bundle("layers")
    start = make("fedavg", bundle).start()
    averaged = Devices(bundle, DATA).carry_on(make("fedavg", bundle), start, 1)
    method = make(name, bundle, **ADAPTIVE, beta_2=0.9)
    got = Devices(bundle, DATA).carry_on(method, method.start(), 1)
    for tensor, x in start.tensors.items():
        d = averaged.tensors[tensor].astype(np.float64) - x
        v = 0.9 * 0.01**2 + 0.1 * d**2 if name == "fedadam" else 0.01**2 + 0.1 * d**2 * np.sign(d**2 - 0.01**2)
        np.testing.assert_allclose(got.tensors[tensor], x + 0.5 * 0.2 * d / (np.sqrt(v) + 0.01), rtol=1e-4, atol=1e-6)


def test_adam_without_memory_and_with_a_large_tau_is_fedavg(make_bundle: MakeBundle) -> None:
    """eta d / (|d| + tau) is d where eta = tau is far above |d|."""
    bundle = make_bundle("layers")
    method = make("fedadam", bundle, beta_1=0, beta_2=0, tau=1e5, server_learning_rate=1e5)
    got, want = finished(method, Devices(bundle, DATA)), finished(make("fedavg", bundle), Devices(bundle, DATA))
    for name, value in want.tensors.items():
        np.testing.assert_allclose(got.tensors[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["fedavgm", "fedadagrad", "fedadam", "fednova", "feddyn"])
def test_statistics_are_averaged_and_have_no_moments(name: str) -> None:
    initial = {"norm.running_var": np.ones(1, np.float32), "norm.weight": np.ones(1, np.float32)}
    own = {"fedavgm": {"server_learning_rate": 0.5}, "fednova": {"server_learning_rate": 0.5}, "feddyn": {"devices": 1}}
    method = msgspec.convert({"initial": initial, **own.get(name, {})}, METHODS[name])
    assert not any("running_var" in name for name in method.start().tensors if name not in initial)
    change = {name: np.full(1, -0.25, np.float32) for name in initial}
    fused = Fused(change, {}, ("pi-1",), 1, {"pi-1": 1.0}, {}, {"pi-1": 3})
    state = method.advance(method.start(), fused)
    assert state.tensors["norm.running_var"] == 0.75
    assert state.tensors["norm.weight"] != 0.75


# --- FedAvgM ------------------------------------------------------------------------------------------------------


def test_momentum_of_the_aggregator_by_hand() -> None:
    """Changes 1, 1 and -2 with beta = 0.5, eta = 0.1: v is 1, 1.5 and -1.25, so w is 0.1, 0.25 and 0.125."""
    settings = {"initial": {"w": np.zeros(1, np.float32)}, "server_learning_rate": 0.1, "momentum": 0.5}
    method = msgspec.convert(settings, METHODS["fedavgm"])
    state, found = method.start(), []
    for d in (1, 1, -2):
        state = method.advance(state, Fused({"w": np.array([d], np.float32)}, {}, ("pi-1",), 1))
        found.append(state.tensors["w"].item())
    assert found == pytest.approx([0.1, 0.25, 0.125])
    assert list(method.ask(State(0, state.tensors)).tensors) == ["w"]  # the velocity stays on the aggregator


def test_without_momentum_fedavgm_is_fedavg(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("layers")
    method = make("fedavgm", bundle, momentum=0, send_as="value")
    got, want = finished(method, Devices(bundle, DATA)), finished(make("fedavg", bundle), Devices(bundle, DATA))
    for name, value in want.tensors.items():
        np.testing.assert_allclose(got.tensors[name], value, rtol=1e-5, atol=1e-6)


# --- FedNova ------------------------------------------------------------------------------------------------------


def eq_8(rounds: int, epochs: int, batch: int, rate: float, rho: float, seed: int, *, equal: bool) -> dict[str, Any]:
    """FedNova as Wang et al. 2020 write it: a_k a vector, gradients by autograd in float64, on the devices' batches."""
    import torch
    from layers import make_layers

    module = make_layers().double()
    x = {name: w.detach().clone() for name, w in module.named_parameters()}
    p = {device: 1 / len(DATA) if equal else len(d) / sum(map(len, DATA.values())) for device, d in DATA.items()}
    for number in range(rounds):
        d_k, norms = {}, {}
        for device, data in DATA.items():
            y = {name: w.clone().requires_grad_() for name, w in x.items()}
            velocity = {name: torch.zeros_like(w) for name, w in x.items()}
            gradients = []
            for epoch in range(epochs):
                order = order_of(len(data), seed=seed + number, device=device, epoch=epoch)
                for start in range(0, len(data), batch):
                    rows = order[start : start + batch]
                    features, labels = (torch.from_numpy(a[rows]).double() for a in (data.features, data.labels))
                    loss = ((torch.func.functional_call(module, y, (features,)) - labels) ** 2).mean()
                    g = dict(zip(y, torch.autograd.grad(loss, list(y.values())), strict=True))
                    gradients.append(g)
                    velocity = {n: rho * velocity[n] + g[n] for n in g}
                    y = {n: (w - rate * velocity[n]).detach().requires_grad_() for n, w in y.items()}
            tau = len(gradients)
            a = [sum(rho ** (later - j) for later in range(j, tau)) for j in range(tau)]
            norms[device] = sum(a)
            d_k[device] = {n: sum(a_j * g[n] for a_j, g in zip(a, gradients, strict=True)) / sum(a) for n in x}
        tau_eff = sum(p[device] * norms[device] for device in DATA)
        x = {n: x[n] - tau_eff * rate * sum(p[device] * d_k[device][n] for device in DATA) for n in x}
    return x


@pytest.mark.parametrize(("bundle", "rho"), [("layers", 0.0), ("pushed", 0.5)])
@pytest.mark.parametrize("weight", ["examples", "equal"])
def test_fednova_is_eq_8(make_bundle: MakeBundle, bundle: str, rho: float, weight: str) -> None:
    """Devices of 2, 5 and 9 examples: 2, 6 and 10 steps of them."""
    settings = {"epochs": 2, "momentum": rho, "weight": weight, "learning_rate": 0.05, "seed": 7}
    method = make("fednova", make_bundle(bundle), **settings)
    devices = Devices(make_bundle(bundle), DATA)
    state = method.start()
    for number in range(ROUNDS):
        replies = devices.replies(method.ask(state), number)
        assert {reply.device: reply.steps for reply in replies} == {"pi-1": 2, "pi-2": 6, "pi-3": 10}
        state = method.advance(state, fuse(method.ask(state), replies))
    want = eq_8(ROUNDS, 2, 2, 0.05, rho, 7, equal=weight == "equal")
    plain = make("fedavg", make_bundle(bundle), epochs=2, weight=weight, learning_rate=0.05, seed=7)
    averaged = finished(plain, Devices(make_bundle(bundle), DATA)).tensors["head.weight"]
    for name, value in want.items():
        np.testing.assert_allclose(state.tensors[name], value.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)
    assert not np.allclose(state.tensors["head.weight"], averaged, rtol=1e-2)


def test_where_all_take_as_many_steps_fednova_is_fedavg(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("pushed")
    settings = {"batch_size": 0, "epochs": 3}
    got = finished(make("fednova", bundle, momentum=0.5, **settings), Devices(bundle, DATA))
    assert_close(got, finished(make("fedavg", bundle, send_as="delta", **settings), Devices(bundle, DATA)))


def test_a_reply_without_steps_has_no_weight(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("layers")
    method = make("fednova", bundle)
    ask = method.ask(method.start())
    (reply,) = Devices(bundle, DATA).replies(ask, 0, ["pi-1"])
    with pytest.raises(RemoteProtocolError, match="'normalized' failed: ValueError: the reply says no steps"):
        fuse(ask, [msgspec.structs.replace(reply, steps=0)])
    with pytest.raises(msgspec.ValidationError, match="fusion"):
        make("fednova", bundle, fusion="median")


# --- FedDyn -------------------------------------------------------------------------------------------------------


def test_the_aggregators_half_of_feddyn_by_hand() -> None:
    """alpha = 0.5, m = 4. Changes of 1 and 3: h = -0.5 / 4 * 4 = -0.5, so 0 + 2 + 0.5 / 0.5 = 3. Then one of -1:
    h = -0.5 + 0.5 / 4 = -0.375, so 3 - 1 + 0.75 = 2.75."""
    settings = {"initial": {"w": np.zeros(1, np.float32)}, "devices": 4, "alpha": 0.5}
    method = msgspec.convert(settings, METHODS["feddyn"])
    state, found = method.start(), []
    for changes in ([1, 3], [-1]):
        ask = method.ask(state)
        replies = [Reply(f"pi-{i}", 0, i + 1, {"w": np.array([d], np.float32)}, {}) for i, d in enumerate(changes)]
        state = method.advance(state, fuse(ask, replies))
        found.append((state.tensors["w"].item(), state.tensors["feddyn.h.w"].item()))
    assert found == [(3, -0.5), (2.75, -0.375)]


def test_feddyn_comes_to_rest_in_the_minimum_of_everybodys_loss() -> None:
    """f_k(y) = c_k (y - t_k)^2 / 2 for c = 1, 2, 5 and t = 0, 3, 6, which devices minimise exactly: their mean is least
    at (0 + 6 + 30) / 8 = 4.5, and there every device agrees."""
    c, t, alpha = np.array([1.0, 2, 5]), np.array([0.0, 3, 6]), 0.8
    initial = {"w": np.zeros(1, np.float32)}
    method = msgspec.convert({"initial": initial, "devices": 3, "alpha": alpha, "rounds": 200}, METHODS["feddyn"])
    state, g = method.start(), np.zeros(3)
    for number in range(200):
        ask = method.ask(state)
        theta = ask.tensors["w"].astype(np.float64)
        own = (c * t + g + alpha * theta) / (c + alpha)
        g = g - alpha * (own - theta)
        replies = [Reply(f"pi-{k}", number, 1, {"w": np.array([own[k] - theta[0]], np.float32)}, {}) for k in range(3)]
        state = method.advance(state, fuse(ask, replies))
    assert state.tensors["w"].item() == pytest.approx(4.5, abs=1e-4)
    np.testing.assert_allclose(own, 4.5, atol=1e-4)


def dynamic_regularisation(rounds: list[list[str]], steps: int, rate: float, alpha: float) -> dict[str, Any]:
    """FedDyn as Acar et al. 2021 write it, in float64 with autograd; each problem by so many steps on all examples."""
    import torch
    from layers import make_layers

    module = make_layers().double()
    theta = {name: w.detach().clone() for name, w in module.named_parameters()}
    h = {name: torch.zeros_like(w) for name, w in theta.items()}
    g_k = {device: {name: torch.zeros_like(w) for name, w in theta.items()} for device in DATA}
    for asked in rounds:
        found = []
        for device in asked:
            features, labels = (torch.from_numpy(a).double() for a in (DATA[device].features, DATA[device].labels))
            y = {name: w.clone().requires_grad_() for name, w in theta.items()}
            for _ in range(steps):
                loss = ((torch.func.functional_call(module, y, (features,)) - labels) ** 2).mean()
                for name, w in y.items():
                    loss = loss - (g_k[device][name] * w).sum() + alpha / 2 * ((w - theta[name]) ** 2).sum()
                gradients = torch.autograd.grad(loss, list(y.values()))
                y = {
                    n: (w - rate * g).detach().requires_grad_() for (n, w), g in zip(y.items(), gradients, strict=True)
                }
            own = {n: w.detach() for n, w in y.items()}
            g_k[device] = {n: g_k[device][n] - alpha * (own[n] - theta[n]) for n in theta}
            found.append(own)
        h = {n: h[n] - alpha / len(DATA) * sum(own[n] - theta[n] for own in found) for n in theta}
        theta = {n: sum(own[n] for own in found) / len(found) - h[n] / alpha for n in theta}
    return {**theta, **{f"feddyn.h.{n}": value for n, value in h.items()}}


def test_feddyn_is_algorithm_1(make_bundle: MakeBundle) -> None:
    """Some of the devices in each round; four steps of them each."""
    bundle = make_bundle("shifted")
    asked = [["pi-1", "pi-3"], ["pi-2", "pi-3"], ["pi-1", "pi-2", "pi-3"], ["pi-1"]]
    settings = {"devices": 3, "epochs": 4, "batch_size": 0, "alpha": 0.3, "rounds": 4, "learning_rate": 0.05}
    method = make("feddyn", bundle, **settings)
    check_ask(method.ask(method.start()), bundle.manifest)
    devices, state = Devices(bundle, DATA), method.start()
    for names in asked:
        state = devices.carry_on(method, state, 1, names)
    want = dynamic_regularisation(asked, 4, 0.05, 0.3)
    assert state.tensors.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(state.tensors[name], value.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_feddyn_asks_for_anchor_training_and_the_devices_own_term() -> None:
    initial = {"w": np.zeros(1, np.float32)}
    method = msgspec.convert({"initial": initial, "devices": 2, "alpha": 0.1, "evaluate": True}, METHODS["feddyn"])
    evaluate, anchor, train, dynamic = method.ask(method.start()).tasks
    assert [task.program for task in (evaluate, anchor, train, dynamic)] == ["evaluate", "anchor", "train", "dynamic"]
    assert (anchor.load, anchor.steps, anchor.batch_size, anchor.send) == (("*",), 1, 1, ())
    assert train.settings == {"proximal": 0.1} and train.send == ("w",)
    assert (dynamic.load, dynamic.steps, dynamic.batch_size, dynamic.send) == ((), 1, 1, ())
    for wrong, says in (({}, "devices"), ({"share": ["w"]}, "every parameter"), ({"alpha": 0}, "alpha")):
        with pytest.raises(msgspec.ValidationError, match=says):
            msgspec.convert({"initial": initial} | ({"devices": 2, **wrong} if wrong else {}), METHODS["feddyn"])
    many = Fused({"w": np.zeros(1, np.float32)}, {}, ("a", "b", "c"), 3)
    with pytest.raises(ConfigError, match="devices is 2, but 3 answered"):
        method.advance(method.start(), many)


# --- SCAFFOLD -----------------------------------------------------------------------------------------------------


def algorithm_1(rounds: list[list[str]], steps: int, local_rate: float, global_rate: float) -> dict[str, Any]:
    """SCAFFOLD as Karimireddy et al. 2020 write it, option II, in float64 with autograd; each step on all examples."""
    import torch
    from layers import make_layers

    module = make_layers().double()
    x = {name: w.detach().clone() for name, w in module.named_parameters()}
    c = {name: torch.zeros_like(w) for name, w in x.items()}
    c_i = {device: {name: torch.zeros_like(w) for name, w in x.items()} for device in DATA}
    for asked in rounds:
        moved, changed = [], []
        for device in asked:
            features, labels = (torch.from_numpy(a).double() for a in (DATA[device].features, DATA[device].labels))
            y = {name: w.clone().requires_grad_() for name, w in x.items()}
            for _ in range(steps):
                predicted = torch.func.functional_call(module, y, (features,))
                g = dict(zip(y, torch.autograd.grad(((predicted - labels) ** 2).mean(), list(y.values())), strict=True))
                y = {
                    n: (w - local_rate * (g[n] - c_i[device][n] + c[n])).detach().requires_grad_() for n, w in y.items()
                }
            new = {n: c_i[device][n] - c[n] + (x[n] - y[n].detach()) / (steps * local_rate) for n in x}
            moved.append({n: y[n].detach() - x[n] for n in x})
            changed.append({n: new[n] - c_i[device][n] for n in x})
            c_i[device] = new
        x = {n: x[n] + global_rate * sum(m[n] for m in moved) / len(asked) for n in x}
        c = {n: c[n] + len(asked) / len(DATA) * sum(d[n] for d in changed) / len(asked) for n in x}
    return {**x, **{f"control.{n}": value for n, value in c.items()}}


@pytest.mark.parametrize("global_rate", [1.0, 0.5])
def test_scaffold_is_algorithm_1(make_bundle: MakeBundle, global_rate: float) -> None:
    """Some of the devices in each round; four steps of them each."""
    bundle = make_bundle("controlled")
    asked = [["pi-1", "pi-3"], ["pi-2", "pi-3"], ["pi-1", "pi-2", "pi-3"], ["pi-1"]]
    settings = {"devices": 3, "epochs": 4, "batch_size": 0, "server_learning_rate": global_rate, "rounds": 4}
    method = make("scaffold", bundle, **settings)
    devices, state = Devices(bundle, DATA), method.start()
    for names in asked:
        state = devices.carry_on(method, state, 1, names)
    want = algorithm_1(asked, 4, 0.1, global_rate)
    assert state.tensors.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(state.tensors[name], value.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_with_everybody_in_every_round_c_is_the_mean_of_all_c_i(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("controlled")
    method = make("scaffold", bundle, devices=3, epochs=2)
    devices, state = Devices(bundle, DATA), method.start()
    for _ in range(ROUNDS):
        state = devices.carry_on(method, state, 1)
        for name in (*BODY, *HEAD):
            own = [kept[f"own_control.{name}"] for kept in devices.kept.values()]
            assert np.abs(own).max() > 0.01
            np.testing.assert_allclose(state.tensors[f"control.{name}"], np.mean(own, axis=0), rtol=1e-4, atol=1e-6)


def test_the_first_round_of_scaffold_is_fedavgs(make_bundle: MakeBundle) -> None:
    bundle, plain = make_bundle("controlled"), make_bundle("layers")
    scaffold = make("scaffold", bundle, devices=3, epochs=2)
    fedavg = make("fedavg", plain, epochs=2, weight="equal", send_as="delta")
    got = Devices(bundle, DATA).carry_on(scaffold, scaffold.start(), 2)
    want = Devices(plain, DATA).carry_on(fedavg, fedavg.start(), 2)
    first = Devices(bundle, DATA).carry_on(scaffold, scaffold.start(), 1)
    for name, value in Devices(plain, DATA).carry_on(fedavg, fedavg.start(), 1).tensors.items():
        np.testing.assert_allclose(first.tensors[name], value, rtol=1e-5, atol=1e-6)
    assert not np.allclose(got.tensors["head.bias"], want.tensors["head.bias"], rtol=1e-3)


def test_scaffold_of_one_device_is_sgd(make_bundle: MakeBundle) -> None:
    alone = {"pi-3": DATA["pi-3"]}
    scaffold = make("scaffold", make_bundle("controlled"), devices=1, epochs=2)
    got = finished(scaffold, Devices(make_bundle("controlled"), alone))
    want = finished(make("fedavg", make_bundle("layers"), epochs=2), Devices(make_bundle("layers"), alone))
    for name, value in want.tensors.items():
        np.testing.assert_allclose(got.tensors[name], value, rtol=1e-4, atol=1e-5)


def test_scaffold_says_what_it_needs(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("controlled")
    with pytest.raises(msgspec.ValidationError, match="missing required field `devices`"):
        make("scaffold", bundle)
    with pytest.raises(msgspec.ValidationError, match="share: scaffold corrects every parameter"):
        make("scaffold", bundle, devices=3, share=["head.*"])
    with pytest.raises(ConfigError, match="the bundle has no control variates"):
        make("scaffold", make_bundle("layers"), devices=3).start()
    with pytest.raises(ConfigError, match="devices is 2, but 3 answered"):
        finished(make("scaffold", bundle, devices=2), Devices(bundle, DATA))
    fedavg = make("fedavg", bundle)
    with pytest.raises(ConfigError, match="which only program control sets") as refused:
        check_ask(fedavg.ask(fedavg.start()), bundle.manifest)
    assert refused.value.hint is not None and "scaffold" in refused.value.hint


# --- FedProto -----------------------------------------------------------------------------------------------------


def make_classes() -> dict[str, Dataset]:
    """Three devices, of four classes: the first has 0 and 1, the second 1 and 2, the third 2 alone; nobody has 3."""
    rng = np.random.default_rng(6)
    classes = {"pi-1": [0, 1, 1], "pi-2": [1, 2, 2, 1, 1], "pi-3": [2, 2]}
    return {n: Dataset(rng.normal(size=(len(y), 2)).astype(np.float32), np.array(y)) for n, y in classes.items()}


CLASSES = make_classes()


def features_of(devices: Devices, name: str) -> Any:
    """What the layer before the last makes of a device's examples now: numpy's view of the state it keeps."""
    w, x = devices.kept[name], CLASSES[name].features
    if "extractor.2.weight" in w:
        x = np.maximum(x @ w["extractor.0.weight"].T + w["extractor.0.bias"], 0)
    last = "extractor.2" if "extractor.2.weight" in w else "extractor.0"
    return np.tanh(x @ w[f"{last}.weight"].T + w[f"{last}.bias"])


def test_fused_prototypes_are_the_means_of_everybodys_examples(make_bundle: MakeBundle) -> None:
    """Two architectures in one fleet, with four features each."""
    bundles = {"pi-1": make_bundle("shallow"), "pi-2": make_bundle("deep"), "pi-3": make_bundle("shallow")}
    devices = Devices(bundles, CLASSES)
    method = make("fedproto", bundles["pi-1"], epochs=3)
    state = method.start()
    for _ in range(ROUNDS):
        state = devices.carry_on(method, state, 1)
        features = np.concatenate([features_of(devices, name) for name in CLASSES])
        labels = np.concatenate([data.labels for data in CLASSES.values()])
        for label in range(3):
            pooled = features[labels == label].mean(0, dtype=np.float64)
            np.testing.assert_allclose(state.tensors["prototypes"][label], pooled, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(state.tensors["known"], [1, 1, 1, 0])
        np.testing.assert_array_equal(state.tensors["prototypes"][3], np.zeros(4))


def test_a_class_that_nobody_of_a_round_has_keeps_its_prototype(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("shallow")
    devices, method = Devices(bundle, CLASSES), make("fedproto", bundle)
    first = devices.carry_on(method, method.start(), 1, ["pi-3"])
    np.testing.assert_array_equal(first.tensors["known"], [0, 0, 1, 0])
    second = devices.carry_on(method, first, 1, ["pi-1"])
    np.testing.assert_array_equal(second.tensors["known"], [1, 1, 1, 0])
    np.testing.assert_array_equal(second.tensors["prototypes"][2], first.tensors["prototypes"][2])


def test_without_weight_fedproto_is_training_alone(make_bundle: MakeBundle) -> None:
    """Also in its first round, when no class is known."""
    bundle = make_bundle("shallow")
    alone, pulled, free = Devices(bundle, CLASSES), Devices(bundle, CLASSES), Devices(bundle, CLASSES)
    start = make("fedproto", bundle).start()
    finished(make("fedproto", bundle, prototype_weight=0.0), free)
    for number in range(ROUNDS):
        unknown = make("fedproto", bundle).ask(msgspec.structs.replace(start, round=number))
        alone.replies(unknown, number)
        if number == 0:
            pulled.carry_on(make("fedproto", bundle), start, 1)
            for name in CLASSES:
                np.testing.assert_array_equal(pulled.kept[name]["head.weight"], alone.kept[name]["head.weight"])
    for name in CLASSES:
        for tensor, value in alone.kept[name].items():
            np.testing.assert_array_equal(free.kept[name][tensor], value)


def test_prototypes_pull_features_together(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("shallow")
    distances = []
    for weight in (0.0, 5.0):
        devices = Devices(bundle, CLASSES)
        method = make("fedproto", bundle, prototype_weight=weight, rounds=20, epochs=2)
        state = devices.carry_on(method, method.start(), 20)
        prototypes = state.tensors["prototypes"]
        spread = [np.square(features_of(devices, n) - prototypes[CLASSES[n].labels]).mean() for n in CLASSES]
        distances.append(np.mean(spread))
    assert distances[1] < 0.5 * distances[0]


def test_no_model_leaves_its_device(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("shallow")
    method = make("fedproto", bundle, evaluate=True)
    ask = method.ask(method.start())
    assert set(ask.tensors) == {"prototypes", "known"}
    for reply in Devices(bundle, CLASSES).replies(ask, 0):
        assert set(reply.tensors) == {"prototype_sums", "prototype_counts"}
        assert 0 <= reply.metrics["evaluate.prototype_accuracy"] <= 1
    private = {t.name for t in bundle.manifest.state if t.fuse == "local"}
    assert private == {"extractor.0.weight", "extractor.0.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("name", METHODS)
def test_each_method_names_its_paper(name: str) -> None:
    title, paper = paper_of(METHODS[name])
    assert title.lower().replace("-", "_").replace(" ", "_") == name
    assert paper.count('"') >= 2 and paper.endswith(".") and ("arXiv:" in paper or "AISTATS 2017" in paper)
