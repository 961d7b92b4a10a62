"""How like a device's own images dreams are: the check that a dream gives none of them away."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgefl.data_contract import Normalisation
from edgefl.manifest import Output
from edgefl.names import DREAMS, FEATURES, LIKENESS_MOST, NEAREST
from edgefl_exporter.programs.program import Definition, Values, following
from edgefl_exporter.programs.supervised import Supervised

MEAN = "likeness"
LEAST = -1.0  # of a cosine
TINY = 1e-8  # added to squared norms: an image of one colour is like nothing


def likeness(task: Supervised, *, dreams: int, normalisation: Normalisation) -> Definition:
    """The greatest cosine similarity of each dream to any of the feed's examples, as images without their mean.

    The dreams are pixels, uint8 [dreams, ...] in the state `dreams`, normalised here like the device's own. `nearest`
    [dreams] grows with each batch; a task resets it. The metrics are its mean and its maximum.
    """
    x = task.samples.example
    noise = torch.randint(0, 256, (dreams, *x.shape[1:]), generator=torch.Generator().manual_seed(0))
    brings = {DREAMS: noise.to(torch.uint8), NEAREST: torch.full((dreams,), LEAST)}
    mean, std = (
        torch.tensor(numbers).reshape(-1, *[1] * (x.dim() - 2)) for numbers in (normalisation.mean, normalisation.std)
    )

    def step(values: Values) -> dict[str, Tensor]:
        pixels = (values[DREAMS].to(torch.float32) / 255 - mean) / std
        cosines = _unit(values[FEATURES]) @ _unit(pixels).transpose(0, 1)  # [batch, dreams]
        return _measured(torch.maximum(values[NEAREST], cosines.amax(0)))

    def oracle(values: Values) -> dict[str, Tensor]:
        own = values[FEATURES].flatten(1)
        pixels = (values[DREAMS].to(own.dtype) / 255 - mean) / std
        own, theirs = (rows - rows.mean(1, keepdim=True) for rows in (own, pixels.flatten(1)))
        cosines = F.cosine_similarity(theirs[:, None], own[None], dim=2)  # [dreams, batch]
        return _measured(torch.cat([values[NEAREST][:, None], cosines], 1).max(1).values)

    outputs = tuple(Output(name, "float32", (), "last") for name in (MEAN, LIKENESS_MOST))
    inputs = (task.features(None),)
    return Definition("likeness", inputs, outputs, {NEAREST: following(NEAREST)}, step, oracle, brings=brings)


def _measured(nearest: Tensor) -> dict[str, Tensor]:
    return {following(NEAREST): nearest, MEAN: nearest.mean(), LIKENESS_MOST: nearest.amax(0)}


def _unit(x: Tensor) -> Tensor:
    """[batch, ...] -> rows [batch, values] without their mean, of length 1."""
    rows = x.flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    return rows / ((rows * rows).sum(1, keepdim=True) + TINY).sqrt()
