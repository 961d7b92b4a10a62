"""CoDream's programs, as a device runs them: gradients of each term, statistics, soft labels, the leak check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefl.bundle import Bundle, Normalisation
from edgefl.errors import InputError, LoweringError
from edgefl.method import Task
from edgefl.tensors import Array
from edgefl_device.data.contract import fit_to_contract
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.interpreter import Outcome, perform
from edgefl_exporter import SGD, export
from edgefl_exporter.methods import CoDream
from edgefl_exporter.programs.dreams import dream
from edgefl_exporter.programs.generator import NUMBERS, Generator
from edgefl_exporter.programs.objective import FACTORS
from edgefl_exporter.programs.observed import statistics

EXAMPLES, CLASSES, SHAPE, DREAMS = 11, 3, (2, 5, 4), 4
NORMALISATION = Normalisation((0.4, 0.6), (0.25, 0.2))
TINY = 1e-8  # under every root


def with_norms() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(60, 5),
        nn.BatchNorm1d(5),
        nn.Tanh(),
        nn.Linear(5, CLASSES),
    )
    for norm in (model[1], model[5]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model


def without_norms() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(60, 5), nn.Tanh(), nn.Linear(5, CLASSES)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"batch norm": with_norms, "none": without_norms}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("dreams")
    return {
        name: export(
            make(),
            torch.zeros(1, *SHAPE),
            out=folder / name,
            name="b",
            normalisation=NORMALISATION,
            optimizer=SGD(0.1, momentum=0.9),
            method=CoDream(dreams=DREAMS, generator=name == "none"),
        )
        for name, make in MODELS.items()
    }


def pixels(count: int = EXAMPLES, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE)).astype(np.uint8)


def normalised(images: Array) -> Tensor:
    mean, std = (np.array(n, np.float32).reshape(2, 1, 1) for n in (NORMALISATION.mean, NORMALISATION.std))
    return torch.from_numpy(((images / 255 - mean) / std).astype(np.float32))


def noise(count: int = 6, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)


def carried_out(runtime: Runtime, *tasks: Task, **announced: Array) -> Outcome:
    data = fit_to_contract(Dataset(pixels(), np.arange(EXAMPLES) % CLASSES), runtime.manifest.data, "test")
    return perform(runtime, tasks, announced, {"train": data}, device="d")


# As a method asks a whole fleet: the glob passes over bundles with BatchNorm, which have no such counter.
STATISTICS = Task(program="statistics", reset=("observed.examples*",), batch_size=4)


def dreaming(**settings: float) -> Task:
    return Task(program="dream", feed="announced", batch_size=0, send=("dream_gradient",), settings=settings)


def alone(term: str) -> dict[str, float]:
    """The factors with which L is one term."""
    return dict.fromkeys(FACTORS, 0.0) | {term: 1.0}


def seen_by(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What the observed layers see, each [channels, values]: inputs of BatchNorms, else outputs of all but the last."""
    norms = [layer for layer in model if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    seen = []
    for layer in list(model)[:-1]:
        y = layer(x)
        if layer in norms or (not norms and isinstance(layer, nn.Conv2d | nn.Linear)):
            seen.append((x if norms else y).transpose(0, 1).flatten(1))
        x = y
    return seen


def objective(model: nn.Module, state: dict[str, Array], term: str, x: Tensor) -> Tensor:
    """One term of L, in the precision of x, written out from the paper."""
    model = model.to(x.dtype).eval()
    if term == "entropy":
        p = model(x).softmax(1)
        return -(p * p.log()).sum(1).mean()
    if term == "total_variation":
        rows, columns = (x[:, :, 1:] - x[:, :, :-1]) ** 2, (x[:, :, :, 1:] - x[:, :, :, :-1]) ** 2
        return (rows.sum() + columns.sum()) / x.numel()
    if term == "l2":
        return ((x**2).sum() + TINY) ** 0.5
    total = torch.zeros((), dtype=x.dtype)
    at = 0
    norms = [layer for layer in model if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    for index, values in enumerate(seen_by(model, x)):
        if norms:
            wanted = [norms[index].running_mean, norms[index].running_var]
        else:
            part = slice(at, at + len(values))
            wanted = [torch.from_numpy(state[name][part]).to(x) for name in ("observed.mean", "observed.variance")]
            at += len(values)
        for found, want in zip((values.mean(1), values.var(1, correction=0)), wanted, strict=True):
            total = total + (((found - want) ** 2).sum() + TINY) ** 0.5
    return total


# --- dream --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", FACTORS)
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_each_term_is_that_of_finite_differences(
    bundles: dict[str, Bundle], name: str, term: str
) -> None:
    """Central differences in float64 with steps of 1e-5 are off by the third derivative times 1e-10, and by the
    rounding of L, 1e-16 / 1e-5; what is left is the program's float32: 1e-6 of the largest, with a margin of 20."""
    runtime = Runtime(bundles[name])
    x = noise(3)
    outcome = carried_out(runtime, STATISTICS, dreaming(**alone(term)), x=x)
    state = runtime.state()
    model, wide = MODELS[name](), torch.from_numpy(x).double()
    gradient = torch.zeros_like(wide)
    with torch.no_grad():
        value = objective(model, state, term, wide)
        for place in range(wide.numel()):
            ends = []
            for step in (1e-5, -1e-5):
                moved = wide.clone()
                moved.view(-1)[place] += step
                ends.append(objective(model, state, term, moved))
            gradient.view(-1)[place] = (ends[0] - ends[1]) / 2e-5
    got = outcome.tensors["dream_gradient"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, gradient.numpy(), rtol=0, atol=2e-5 * gradient.abs().max())
    assert outcome.metrics[f"dream.{term}_term"] == pytest.approx(value.item(), rel=1e-5)
    assert outcome.metrics["dream.loss"] == pytest.approx(value.item(), rel=1e-5)


def test_the_loss_is_the_sum_of_the_terms_with_their_factors(bundles: dict[str, Bundle]) -> None:
    runtime = Runtime(bundles["batch norm"])
    factors = {"entropy": 2.0, "statistics": 3.0, "total_variation": 0.5, "l2": 0.25}
    found = carried_out(runtime, dreaming(**factors), x=noise())
    terms = {name: found.metrics[f"dream.{name}_term"] for name in factors}
    assert found.metrics["dream.loss"] == pytest.approx(sum(f * terms[name] for name, f in factors.items()), rel=1e-6)
    each = [carried_out(runtime, dreaming(**alone(name)), x=noise()).tensors["dream_gradient"] for name in factors]
    summed = sum(f * gradient for f, gradient in zip(factors.values(), each, strict=True))
    np.testing.assert_allclose(found.tensors["dream_gradient"], summed, rtol=1e-4, atol=1e-6)
    scaled = carried_out(runtime, dreaming(**factors, gradient_scale=64.0), x=noise())
    np.testing.assert_array_equal(scaled.tensors["dream_gradient"], found.tensors["dream_gradient"] * 64)
    assert scaled.metrics["dream.loss"] == found.metrics["dream.loss"]


def test_the_mean_of_two_devices_gradients_is_the_gradient_of_their_mean_loss(bundles: dict[str, Bundle]) -> None:
    runtimes = {name: Runtime(bundle) for name, bundle in bundles.items()}
    carried_out(runtimes["none"], STATISTICS)
    x = torch.from_numpy(noise()).double().requires_grad_()
    factors = FACTORS | {"total_variation": 0.1, "l2": 0.1}
    losses = [
        factor * objective(MODELS[name](), runtime.state(), term, x)
        for name, runtime in runtimes.items()
        for term, factor in factors.items()
    ]
    (torch.stack(losses).sum() / 2).backward()
    replies = [carried_out(runtime, dreaming(**factors), x=noise()) for runtime in runtimes.values()]
    mean = np.mean([reply.tensors["dream_gradient"] for reply in replies], axis=0)
    np.testing.assert_allclose(mean, x.grad, rtol=0, atol=1e-5 * x.grad.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_dreaming_and_labelling_change_nothing(bundles: dict[str, Bundle], name: str) -> None:
    runtime = Runtime(bundles[name])
    before = runtime.state()
    steps = Task(program="dream_steps", feed="announced", batch_size=0, send=("dream_change",))
    label = Task(program="label", feed="announced", batch_size=4, send=("probabilities",))
    carried_out(runtime, dreaming(), steps, label, x=noise())
    for key, value in runtime.state().items():
        np.testing.assert_array_equal(value, before[key])
    for program in ("dream", "dream_steps", "label"):
        assert not bundles[name].manifest.program(program).writes


def test_at_the_statistics_themselves_the_gradient_is_finite(bundles: dict[str, Bundle]) -> None:
    """Of two layers, mean and variance: four norms of nothing, each the root of TINY."""
    runtime = Runtime(bundles["none"])
    own = Task(program="statistics", reset=("observed.examples",), batch_size=0)
    carried_out(runtime, own)
    outcome = carried_out(runtime, dreaming(**alone("statistics")), x=normalised(pixels()).numpy())
    assert np.abs(outcome.tensors["dream_gradient"]).max() < 1
    assert outcome.metrics["dream.statistics_term"] == pytest.approx(4 * TINY**0.5, rel=1e-2)


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, CLASSES))


def test_features_in_a_row_have_no_total_variation(tmp_path: Path) -> None:
    method = CoDream(dreams=2)
    bundle = export(two_layers(), torch.zeros(1, 4), out=tmp_path / "b", name="b", method=method, programs=("train",))
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    outcome = carried_out_alone(bundle, dreaming(), x)
    assert outcome.metrics["dream.total_variation_term"] == 0
    assert outcome.tensors["dream_gradient"].shape == (6, 4)


def carried_out_alone(bundle: Bundle, task: Task, x: Array) -> Outcome:
    """A task on announced examples, of a device without data."""
    return perform(Runtime(bundle), [task], {"x": x}, {}, device="d")


def test_a_deep_net_is_proven_although_squares_of_its_variances_overflow(tmp_path: Path) -> None:
    """Weights that are 0.05 greater multiply by 10 in each of these layers, variances by 100."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 200), *(nn.Linear(200, 200) for _ in range(12)), nn.Linear(200, CLASSES))
    x = torch.zeros(1, 4)
    bundle = export(model, x, out=tmp_path / "b", name="b", programs=(), own_programs=(statistics,))
    assert bundle.manifest.program("statistics").parity.worst < 1e-4


# --- dream_steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", MODELS)
def test_local_steps_are_those_of_adam(bundles: dict[str, Bundle], name: str, steps: int) -> None:
    runtime = Runtime(bundles[name])
    settings = {"steps": steps, "step_size": 0.02, "total_variation": 0.1}
    task = Task(program="dream_steps", feed="announced", batch_size=0, send=("dream_change",), settings=settings)
    outcome = carried_out(runtime, STATISTICS, task, x=noise())
    x = torch.from_numpy(noise()).double().requires_grad_()
    model, state, factors = MODELS[name](), runtime.state(), FACTORS | {"total_variation": 0.1}
    adam = torch.optim.Adam([x], lr=0.02)
    losses = []
    for _ in range(steps):
        adam.zero_grad()
        each = [factor * objective(model, state, term, x) for term, factor in factors.items()]
        loss = torch.stack(each).sum()
        loss.backward()
        losses.append(loss.item())
        adam.step()
    np.testing.assert_allclose(outcome.tensors["dream_change"], noise() - x.detach().numpy(), rtol=0, atol=1e-5)
    assert outcome.metrics["dream_steps.loss"] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_many_steps_lead_to_what_the_device_wants(bundles: dict[str, Bundle], name: str) -> None:
    runtime = Runtime(bundles[name])
    carried_out(runtime, STATISTICS)
    task = Task(program="dream_steps", feed="announced", batch_size=0, send=("dream_change",), settings={"steps": 10})
    x, found = noise(), []
    for _ in range(4):
        outcome = carried_out(runtime, task, x=x)
        x = x - outcome.tensors["dream_change"]
        found.append(outcome.metrics["dream_steps.loss"])
    assert found[-1] < 0.8 * found[0]


def test_no_steps_change_nothing(bundles: dict[str, Bundle]) -> None:
    task = Task(program="dream_steps", feed="announced", batch_size=0, send=("dream_change",), settings={"steps": 0})
    outcome = carried_out(Runtime(bundles["batch norm"]), task, x=noise())
    assert not outcome.tensors["dream_change"].any()


# --- statistics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 11, 0])
def test_statistics_are_those_of_all_examples_whatever_the_batches(bundles: dict[str, Bundle], batch_size: int) -> None:
    """Eleven examples in batches of 4, 4 and 3 have the mean and variance of eleven."""
    runtime = Runtime(bundles["none"])
    task = Task(program="statistics", reset=("observed.examples",), batch_size=batch_size)
    carried_out(runtime, task, task)  # a second time is no more examples
    with torch.no_grad():
        seen = seen_by(without_norms().double(), normalised(pixels()).double())
    np.testing.assert_allclose(runtime.view("observed.mean"), np.concatenate([v.mean(1) for v in seen]), atol=1e-6)
    variance = np.concatenate([np.var(v.numpy(), 1) for v in seen])
    np.testing.assert_allclose(runtime.view("observed.variance"), variance, rtol=2e-6)
    assert runtime.view("observed.examples") == EXAMPLES


def test_the_distance_is_to_what_dreams_have_matched_so_far(bundles: dict[str, Bundle]) -> None:
    """Of data as it was: nothing, but TINY. Of one layer's mean moved by 3 in one channel and 4 in another: 5."""
    runtime = Runtime(bundles["none"])
    carried_out(runtime, STATISTICS)
    again = carried_out(runtime, STATISTICS)
    assert again.metrics["statistics.distance"] == pytest.approx(4 * TINY**0.5, rel=1e-2)
    moved = runtime.state(["observed.mean"])["observed.mean"]
    moved[:2] += (3, 4)
    runtime.load({"observed.mean": moved})
    assert carried_out(runtime, STATISTICS).metrics["statistics.distance"] == pytest.approx(5, rel=1e-3)


class Shared(nn.Module):
    """A convolution that is called twice, each time with an activation that changes its output in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x), inplace=True)
        x = F.relu(self.again(x), inplace=True)
        x = F.relu(self.again(x), inplace=True)
        return self.head(x.mean((2, 3)))


def test_a_layer_is_observed_at_each_call_and_before_what_changes_it_in_place(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Shared(), torch.zeros(1, *SHAPE)
    programs = (statistics, dream)
    bundle = export(
        model, x, out=tmp_path / "b", name="b", programs=(), own_programs=programs, normalisation=NORMALISATION
    )
    runtime = Runtime(bundle)
    carried_out(runtime, STATISTICS)
    with torch.no_grad():
        outputs = [model.first(normalised(pixels()))]
        for _ in range(2):
            outputs.append(model.again(outputs[-1].relu()))
    want = np.concatenate([y.mean((0, 2, 3)) for y in outputs])
    np.testing.assert_allclose(runtime.view("observed.mean"), want, atol=1e-6)


def test_a_model_with_batch_norm_keeps_no_other_statistics(bundles: dict[str, Bundle]) -> None:
    runtime = Runtime(bundles["batch norm"])
    outcome = carried_out(runtime, Task(program="statistics", batch_size=0))
    with torch.no_grad():
        far = objective(with_norms(), {}, "statistics", normalised(pixels()).double())
    assert outcome.metrics["statistics.distance"] == pytest.approx(far.item(), rel=1e-5)
    assert not bundles["batch norm"].manifest.program("statistics").writes
    assert not any(tensor.name.startswith("observed") for tensor in bundles["batch norm"].manifest.state)


# --- label and distill --------------------------------------------------------------------------------------------


def test_labels_are_probabilities(bundles: dict[str, Bundle]) -> None:
    task = Task(program="label", feed="announced", batch_size=4, send=("probabilities",))
    outcome = carried_out(Runtime(bundles["batch norm"]), task, x=noise())
    with torch.no_grad():
        want = with_norms().eval()(torch.from_numpy(noise())).softmax(1)
    np.testing.assert_allclose(outcome.tensors["probabilities"], want, rtol=1e-5)
    np.testing.assert_allclose(outcome.tensors["probabilities"].sum(1), np.ones(6), rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 20.0])
def test_a_step_of_distillation_is_autograds(bundles: dict[str, Bundle], temperature: float) -> None:
    """T^2 KL to the labels at temperature T, of which one is certain; in training mode, with train's momentum."""
    runtime = Runtime(bundles["batch norm"])
    y = np.random.default_rng(2).dirichlet(np.ones(CLASSES), size=6).astype(np.float32)
    y[0] = (0, 1, 0)
    settings = {"temperature": temperature, "learning_rate": 0.5}
    task = Task(program="distill", feed="announced", batch_size=0, epochs=2, settings=settings)
    outcome = carried_out(runtime, task, x=noise(), y=y)

    model = with_norms().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    wanted = torch.from_numpy(np.maximum(y, 1e-6).astype(np.float64) ** (1 / temperature)).float()
    wanted = wanted / wanted.sum(1, keepdim=True)
    for _ in range(2):
        optimizer.zero_grad()
        logits = model(torch.from_numpy(noise()))
        loss = temperature**2 * F.kl_div((logits / temperature).log_softmax(1), wanted, reduction="batchmean")
        loss.backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        np.testing.assert_allclose(runtime.view(name), value, rtol=1e-4, atol=1e-6)
    assert outcome.metrics["distill.loss"] == pytest.approx(loss.item(), rel=1e-4)
    agreed = (logits.argmax(1).numpy() == y.argmax(1)).mean()
    assert outcome.metrics["distill.agreement"] == pytest.approx(agreed)


def test_a_model_agrees_with_its_own_labels(bundles: dict[str, Bundle]) -> None:
    """The gradient at the model's own probabilities is nothing: without BatchNorm training sees the same."""
    runtime = Runtime(bundles["none"])
    label = Task(program="label", feed="announced", send=("probabilities",))
    y = carried_out(runtime, label, x=noise()).tensors["probabilities"]
    before = runtime.state()
    outcome = carried_out(runtime, Task(program="distill", feed="announced", batch_size=0), x=noise(), y=y)
    assert outcome.metrics["distill.loss"] == pytest.approx(0, abs=1e-6)
    assert outcome.metrics["distill.agreement"] == 1
    for name in ("0.weight", "5.bias"):
        np.testing.assert_allclose(runtime.view(name), before[name], atol=1e-6)


# --- likeness -----------------------------------------------------------------------------------------------------


LIKENESS = Task(program="likeness", load=("dreams",), reset=("nearest",), batch_size=4)


def test_a_dream_that_is_an_own_image_is_found_out(bundles: dict[str, Bundle]) -> None:
    runtime = Runtime(bundles["none"])
    dreams = np.concatenate([pixels(3, seed=5), pixels()[-1:]])
    outcome = carried_out(runtime, LIKENESS, dreams=dreams)
    nearest = runtime.view("nearest")
    own, theirs = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in map(normalised, (pixels(), dreams)))
    cosines = F.cosine_similarity(theirs[:, None], own[None], dim=2).amax(1)
    np.testing.assert_allclose(nearest, cosines, atol=1e-6)
    assert outcome.metrics["likeness.likeness_most"] == pytest.approx(1, abs=1e-6) == nearest[-1]
    assert outcome.metrics["likeness.likeness"] == pytest.approx(nearest.mean(), abs=1e-6)
    assert nearest[:3].max() < 0.6  # 40 values of noise


def test_images_of_one_colour_are_like_nothing(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    method = CoDream(dreams=2)
    bundle = export(model, torch.zeros(1, 1, 4, 4), out=tmp_path / "b", name="b", method=method, programs=("train",))
    dreams = np.full((2, 1, 4, 4), 128, np.uint8)
    data = Dataset(np.random.default_rng(0).random((5, 1, 4, 4), np.float32), np.zeros(5, np.int64))
    feeds = {"train": fit_to_contract(data, bundle.manifest.data, "test")}
    outcome = perform(Runtime(bundle), [LIKENESS], {"dreams": dreams}, feeds, device="d")
    assert outcome.metrics["likeness.likeness_most"] == pytest.approx(0, abs=1e-3)


# --- generator ----------------------------------------------------------------------------------------------------


def generator_of(bundle: Bundle) -> Generator:
    """PyTorch's own, with the bundle's weights, in float64."""
    weights = {n.removeprefix("generator."): torch.from_numpy(w) for n, w in bundle.weights().items() if "gen" in n}
    module = Generator(SHAPE, NORMALISATION)
    module.load_state_dict(weights)
    return module.double()


def latent(count: int = 6) -> Array:
    return np.random.default_rng(3).normal(size=(count, NUMBERS)).astype(np.float32)


def test_generated_dreams_are_images_in_the_range_of_pixels(bundles: dict[str, Bundle]) -> None:
    """Also where neither height nor width can be divided by four."""
    runtime = Runtime(bundles["none"])
    weights = runtime.state(["generator.body.10.bias"])["generator.body.10.bias"]
    task = Task(program="generate", feed="announced", load=("generator.*",), batch_size=4, send=("x",))
    for shift, pixel in ((50, 1.0), (-50, 0.0)):
        extreme = {"generator.body.10.bias": weights + shift}
        x = perform(runtime, [task], {"x": latent()} | extreme, {}, device="d").tensors["x"]
        want = [(pixel - m) / s for m, s in zip(NORMALISATION.mean, NORMALISATION.std, strict=True)]
        np.testing.assert_allclose(x, np.broadcast_to(np.reshape(want, (2, 1, 1)), (6, *SHAPE)), rtol=1e-6)
    x = carried_out_alone(bundles["none"], Task(program="generate", feed="announced", send=("x",)), latent())
    with torch.no_grad():
        want = generator_of(bundles["none"])(torch.from_numpy(latent()).double())
    np.testing.assert_allclose(x.tensors["x"], want, atol=1e-5)


def test_the_generators_gradient_is_that_of_finite_differences(bundles: dict[str, Bundle]) -> None:
    """Along one random direction of each tensor and of z: central differences in float64, in steps of length 1e-6."""
    bundle = bundles["none"]
    runtime = Runtime(bundle)
    factors = FACTORS | {"total_variation": 0.1, "l2": 0.1}
    settings = factors | {"gradient_scale": 8.0}
    sends = ("gradient.generator.*", "gradient_z")
    task = Task(program="generator_step", feed="announced", batch_size=0, send=sends, settings=settings)
    outcome = carried_out(runtime, STATISTICS, task, x=latent())
    module, z, state = generator_of(bundle), torch.from_numpy(latent()).double(), runtime.state()
    model = without_norms()

    def value() -> float:
        terms = [factor * objective(model, state, term, module(z)) for term, factor in factors.items()]
        return torch.stack(terms).sum().item()

    draw = torch.Generator().manual_seed(0)
    tensors = {f"gradient.generator.{name}": w for name, w in module.named_parameters()} | {"gradient_z": z}
    assert outcome.tensors.keys() == tensors.keys()
    with torch.no_grad():
        assert outcome.metrics["generator_step.loss"] == pytest.approx(value(), rel=1e-5)
        for name, tensor in tensors.items():
            got = torch.from_numpy(outcome.tensors[name]).double() / 8
            direction = torch.randn(tensor.shape, generator=draw, dtype=torch.float64) + got.sign()
            direction /= direction.norm()
            ends = []
            for step in (1e-6, -2e-6):
                tensor += step * direction
                ends.append(value())
            tensor += 1e-6 * direction
            assert (got * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4), name


def test_generating_changes_nothing(bundles: dict[str, Bundle]) -> None:
    for program in ("generate", "generator_step"):
        assert not bundles["none"].manifest.program(program).writes
        assert program not in bundles["batch norm"].manifest.programs


def test_a_generator_makes_images_only(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="a generator makes images, .channels, height, width."):
        method = CoDream(generator=True)
        export(two_layers(), torch.zeros(1, 4), out=tmp_path / "b", name="b", method=method)


# --- what travels, and what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_no_weight_ever_leaves_a_device(bundles: dict[str, Bundle], name: str) -> None:
    manifest = bundles[name].manifest
    assert {tensor.name.partition(".")[0] for tensor in manifest.shared()} <= {"dreams", "generator"}
    assert manifest.method == "codream"
    assert list(manifest.programs)[:9] == [
        "train", "evaluate", "predict", "statistics", "dream", "dream_steps", "label", "distill", "likeness"
    ]  # fmt: skip


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("dreams", torch.zeros(4))
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) + self.dreams)


@pytest.mark.parametrize(
    ("model", "x", "options", "error", "message"),
    [
        (nn.Linear(4, 3), torch.zeros(1, 4), {}, LoweringError, "the model has no layer whose statistics a dream"),
        (two_layers(), torch.zeros(1, 4), {"loss": "mse"}, LoweringError, "dreams need classes, which mse has not"),
        (
            nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)),
            torch.zeros(1, dtype=torch.int64),
            {},
            LoweringError,
            "the example input is torch.int64; a dream is float32",
        ),
        (Named(), torch.zeros(1, 4), {}, LoweringError, "a parameter or buffer is called 'dreams', as state of"),
        (Named(), torch.zeros(1, 4), {"method": CoDream(dreams=0)}, InputError, "0 dreams; expected at least 1"),
    ],
)
def test_models_that_cannot_dream(
    tmp_path: Path, model: nn.Module, x: Tensor, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        export(model, x, out=tmp_path / "b", name="b", **{"method": CoDream(dreams=2)} | options)
    assert not (tmp_path / "b").exists()
