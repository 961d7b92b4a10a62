"""The layers of a model whose statistics a dream shares with the data: what they see, and how far that is from it.

A model with BatchNorm has the statistics of its data, as running mean and variance of each BatchNorm's input (Yin et
al., "Dreaming to Distill", CVPR 2020, arXiv:1912.08795, eq. 4). For any other model the program `statistics` takes
those of the outputs of its convolutions and Linears, the last layer excepted, over the device's own data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgefl.errors import LoweringError
from edgefl.manifest import Output
from edgefl.names import FEATURES, OBSERVED_EXAMPLES
from edgefl_exporter.models.parts import Parts
from edgefl_exporter.programs.program import Definition, Values, following
from edgefl_exporter.programs.supervised import Supervised, count_of
from edgefl_exporter.torch_internals import AnyBatchNorm, AnyConvolution

MEAN, VARIANCE = "observed.mean", "observed.variance"
MEAN_BEFORE, VARIANCE_BEFORE = "observed.mean_before", "observed.variance_before"
DISTANCE = "distance"
# Added to the sum of squares under each norm, whose gradient jumps where the distance is 0.
TINY = 1e-8


class Moments(NamedTuple):
    """Mean and variance (of all values, not Bessel's) of each channel over batch and places, [channels] both."""

    mean: Tensor
    variance: Tensor


class Look(NamedTuple):
    """What a model returns for a batch, what its observed layers see, and what they should."""

    output: Any
    found: list[Moments]
    wanted: list[Moments]


@dataclass(frozen=True)
class Observed:
    """The observed layers of a model, in the order in which they are called; one that is called twice counts twice.

    widths    channels of each
    running   whether they are BatchNorms, which have statistics of their own
    """

    parts: Parts
    widths: tuple[int, ...]
    running: bool

    def state(self) -> dict[str, Tensor]:
        """The statistics that no layer keeps, one layer after another: [channels of all]. Those of noise at first."""
        if self.running:
            return {}
        zeros, ones = torch.zeros(sum(self.widths)), torch.ones(sum(self.widths))
        return {
            OBSERVED_EXAMPLES: torch.tensor(0.0),
            MEAN: zeros,
            VARIANCE: ones,
            MEAN_BEFORE: zeros.clone(),
            VARIANCE_BEFORE: ones.clone(),
        }

    def look(self, values: Values, x: Tensor) -> Look:
        """At a batch, in evaluation mode, as a function that can be traced."""
        output, seen = _watch(self.parts.module, lambda: self.parts.call(values, x, training=False)[0], moments)
        return self._with_wanted(output, seen, values)

    def look_again(self, values: Values, x: Tensor) -> Look:
        """The same by PyTorch's own means."""
        module = self.parts.load(values).eval()
        return self._with_wanted(*_watch(module, lambda: module(x), _torch_moments), values)

    def split(self, mean: Tensor, variance: Tensor) -> list[Moments]:
        """The statistics of all layers, by layer."""
        parts = zip(torch.split(mean, [*self.widths]), torch.split(variance, [*self.widths]), strict=True)
        return [Moments(*both) for both in parts]

    def _with_wanted(self, output: Any, seen: list[_Seen], values: Values) -> Look:
        wanted = [one.running for one in seen if one.running is not None]
        if not self.running:
            wanted = self.split(values[MEAN], values[VARIANCE])
        return Look(output, [one.moments for one in seen], wanted)


def observed(task: Supervised) -> Observed:
    """Raises LoweringError for a model without any layer to observe."""
    parts = task.parts
    module = parts.load(parts.parameters | parts.buffers).eval()
    _, seen = _watch(module, lambda: module(torch.cat([task.samples.example] * 2)), moments)
    if not seen:
        raise LoweringError(
            "the model has no layer whose statistics a dream could match",
            hint="it needs a BatchNorm, or a convolution or Linear before its last layer",
        )
    return Observed(parts, tuple(len(one.moments.mean) for one in seen), seen[0].running is not None)


def distance(found: Sequence[Moments], wanted: Sequence[Moments]) -> Tensor:
    """R = sum over layers of |mean - wanted mean|_2 + |variance - wanted variance|_2, []."""
    far = [norm(a - b) for ours, theirs in zip(found, wanted, strict=True) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack(far).sum()


def torch_distance(found: Sequence[Moments], wanted: Sequence[Moments]) -> Tensor:
    """The same by PyTorch's own norm: TINY under the root is one more component."""
    far = [
        torch_norm(a - b) for ours, theirs in zip(found, wanted, strict=True) for a, b in zip(ours, theirs, strict=True)
    ]
    return sum(far, torch.zeros_like(far[0]))


def norm(x: Tensor) -> Tensor:
    """|x|_2 of all its values, with a gradient everywhere."""
    return ((x * x).sum() + TINY).sqrt()


def torch_norm(x: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(torch.cat([x.flatten(), x.new_tensor([TINY**0.5])]))
    return found


def moments(x: Tensor, axis: int) -> Moments:
    """Of each channel; `axis` is the one of channels."""
    return Moments(*_Moments.apply(x, axis))  # type: ignore[no-untyped-call]


def statistics(task: Supervised) -> Definition:
    """The statistics of the feed's examples: of a model without BatchNorm they become what its dreams match.

    Exact over all batches from where `observed.examples` is 0, so a task resets that, as the glob
    `observed.examples*` where some bundles of a run have none; the batches may differ in size.
    `distance` is R between these statistics and those that dreams have matched so far. With BatchNorm nothing is
    written, and `distance` is the mean over batches of R between a batch and the running statistics.
    """
    eyes = observed(task)
    inputs = (task.features(None), *task.parts.settings(training=False))

    def against_running(values: Values) -> dict[str, Tensor]:
        with torch.enable_grad():
            look = eyes.look(values, values[FEATURES])
        return {DISTANCE: distance(look.found, look.wanted).detach()}

    def against_running_again(values: Values) -> dict[str, Tensor]:
        look = eyes.look_again(values, values[FEATURES])
        return {DISTANCE: torch_distance(look.found, look.wanted).detach()}

    if eyes.running:
        output = Output(DISTANCE, "float32", (), "mean")
        return Definition("statistics", inputs, (output,), {}, against_running, against_running_again)

    def step(values: Values) -> dict[str, Tensor]:
        """Chan, Golub, LeVeque 1983, doi:10.1080/00031305.1983.10483115, eq. 2.1: two sets of examples as one."""
        with torch.enable_grad():
            look = eyes.look(values, values[FEATURES])
        mean, variance = (torch.cat([one[i].detach() for one in look.found]) for i in (0, 1))
        seen = values[OBSERVED_EXAMPLES]
        total = seen + count_of(values)
        part = (total - seen) / total
        first = seen == 0
        before = [
            torch.where(first, values[a], values[b]) for a, b in ((MEAN, MEAN_BEFORE), (VARIANCE, VARIANCE_BEFORE))
        ]
        change = mean - values[MEAN]
        spread = values[VARIANCE] + (variance - values[VARIANCE]) * part + change * change * (part * (1 - part))
        after = {
            MEAN: torch.where(first, mean, values[MEAN] + change * part),
            VARIANCE: torch.where(first, variance, spread),
        }
        far = distance(eyes.split(after[MEAN], after[VARIANCE]), eyes.split(*before))
        return {
            DISTANCE: far,
            following(OBSERVED_EXAMPLES): total,
            following(MEAN): after[MEAN],
            following(VARIANCE): after[VARIANCE],
            following(MEAN_BEFORE): before[0],
            following(VARIANCE_BEFORE): before[1],
        }

    def oracle(values: Values) -> dict[str, Tensor]:
        """From the sums of squares about the new mean."""
        look = eyes.look_again(values, values[FEATURES])
        means = [torch.cat([one.mean.detach() for one in look.found]), values[MEAN]]
        variances = [torch.cat([one.variance.detach() for one in look.found]), values[VARIANCE]]
        counts = [float(len(values[FEATURES])), float(values[OBSERVED_EXAMPLES])]
        names = (MEAN, VARIANCE) if counts[1] == 0 else (MEAN_BEFORE, VARIANCE_BEFORE)
        total = sum(counts)
        mean = sum(n * m for n, m in zip(counts, means, strict=True)) / total
        variance = sum(n * (v + (m - mean) ** 2) for n, m, v in zip(counts, means, variances, strict=True)) / total
        assert isinstance(mean, Tensor) and isinstance(variance, Tensor)
        far = torch_distance(eyes.split(mean, variance), eyes.split(*(values[name] for name in names)))
        return {
            DISTANCE: far,
            following(OBSERVED_EXAMPLES): torch.full_like(values[OBSERVED_EXAMPLES], total),
            following(MEAN): mean,
            following(VARIANCE): variance,
            following(MEAN_BEFORE): values[names[0]].clone(),
            following(VARIANCE_BEFORE): values[names[1]].clone(),
        }

    writes = {name: following(name) for name in eyes.state()}
    outputs = (Output(DISTANCE, "float32", (), "last"),)
    return Definition("statistics", inputs, outputs, writes, step, oracle, brings=eyes.state())


class _Moments(torch.autograd.Function):
    """Mean and variance, with the gradient written out: (g_mean + 2 g_variance (x - mean)) / n for n values of a
    channel. Autograd's way is four passes over x longer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        others = [at for at in range(x.dim()) if at != axis]
        mean = x.mean(others)
        centred = x - _along(mean, x, axis)
        ctx.save_for_backward(centred)
        ctx.axis = axis
        return mean, (centred * centred).mean(others)

    @staticmethod
    def backward(ctx: Any, g_mean: Tensor, g_variance: Tensor) -> tuple[Tensor, None]:
        (centred,) = ctx.saved_tensors
        n = centred.numel() / centred.shape[ctx.axis]
        slope, shift = (_along(g, centred, ctx.axis) for g in (g_variance * 2 / n, g_mean / n))
        return centred * slope + shift, None


def _along(v: Tensor, x: Tensor, axis: int) -> Tensor:
    """[channels], shaped so that it broadcasts against x."""
    return v.reshape([-1 if at == axis else 1 for at in range(x.dim())])


class _Seen(NamedTuple):
    moments: Moments
    running: Moments | None


def _watch(
    module: nn.Module, call: Callable[[], Any], measure: Callable[[Tensor, int], Moments]
) -> tuple[Any, list[_Seen]]:
    """What `call` returns, and what the observed layers of `module` see meanwhile.

    The model goes on with a copy of an observed output, which an activation may change in place. What runs without a
    gradient, the solve of an equilibrium, is not observed.
    """
    norms = [m for m in module.modules() if isinstance(m, AnyBatchNorm) and m.track_running_stats]
    layers = [m for m in module.modules() if isinstance(m, AnyConvolution | nn.Linear)]
    seen: list[_Seen] = []

    def hook(layer: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        if norms:
            given = args[0] if args else kwargs["input"]
            seen.append(_Seen(measure(given, 1), Moments(layer.running_mean, layer.running_var)))
            return None
        seen.append(_Seen(measure(output, output.dim() - 1 if isinstance(layer, nn.Linear) else 1), None))
        return output.clone()

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in norms or layers]
    try:
        with torch.enable_grad():
            output = call()
    finally:
        for handle in handles:
            handle.remove()
    return output, seen if norms else seen[:-1]


def _torch_moments(x: Tensor, axis: int) -> Moments:
    variance, mean = torch.var_mean(x, [at for at in range(x.dim()) if at != axis], correction=0)
    return Moments(mean, variance)
