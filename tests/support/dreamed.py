"""Two small models that dream, with BatchNorm and without, their bundles, and the objective written from the paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgefl.bundle import Bundle
from edgefl.data_contract import Normalisation
from edgefl.method import Task
from edgefl.tensors import Array
from edgefl_device.data.contract import fit_to_contract
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.interpreter import Outcome, perform
from edgefl_exporter import SGD, export
from edgefl_exporter.methods import CoDream
from edgefl_exporter.programs.objective import FACTORS

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


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, CLASSES))


MODELS: dict[str, Callable[[], nn.Module]] = {"batch norm": with_norms, "none": without_norms}


def export_both(folder: Path) -> dict[str, Bundle]:
    """A bundle of each model, with the programs of CoDream alone; the one without BatchNorm has a generator."""
    return {
        name: export(
            make(),
            torch.zeros(1, *SHAPE),
            out=folder / name,
            name="b",
            normalisation=NORMALISATION,
            optimizer=SGD(0.1, momentum=0.9),
            method=CoDream(dreams=DREAMS, generator=name == "none"),
            programs=(),
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


def carried_out_alone(bundle: Bundle, task: Task, x: Array) -> Outcome:
    """A task on announced examples, of a device without data."""
    return perform(Runtime(bundle), [task], {"x": x}, {}, device="d")


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
