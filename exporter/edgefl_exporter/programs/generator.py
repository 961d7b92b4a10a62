"""CoDream's fast variant: a generator makes the dreams, and devices say how it, and what it is given, should change.

Dreams are G(z). A few steps of G and z from a G that has dreamt before take the place of very many steps of X itself
(Singh et al., arXiv:2402.15968, after Fang et al., "Up to 100x Faster Data-free Knowledge Distillation", AAAI 2022,
arXiv:2112.06253). G is everybody's: the tensors `generator.*` are announced, and devices send their gradients. It has
GroupNorm and no BatchNorm, whose running variance devices with different data cannot agree on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgefl.data_contract import Normalisation
from edgefl.errors import LoweringError
from edgefl.manifest import Input, Output
from edgefl.names import GENERATOR, GRADIENT, GRADIENT_SCALE, GRADIENT_Z
from edgefl_exporter.programs.objective import SCALING, Objective, factors_of
from edgefl_exporter.programs.program import Definition, Values
from edgefl_exporter.programs.samples import Samples
from edgefl_exporter.programs.supervised import Supervised

LATENT = "z"
NUMBERS, WIDTH = 64, 32  # of z, and channels of the first layers


class Generator(nn.Module):
    """z [batch, 64] -> images [batch, *shape], in the range that the pixels of normalised images have.

    A quarter of the height and width, made of z by one Linear, is twice enlarged and convolved.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, ...], normalisation: Normalisation) -> None:
        """Raises LoweringError for a shape that is neither [height, width] nor [channels, height, width]."""
        super().__init__()
        if len(shape) not in (2, 3):
            raise LoweringError(
                f"an example has shape {list(shape)}; a generator makes images, [channels, height, width]",
                hint="export without a generator",
            )
        self.shape = shape
        channels, (height, width) = (shape[0] if len(shape) == 3 else 1), shape[-2:]
        small = (-(-height // 4), -(-width // 4))
        self.start = nn.Linear(NUMBERS, WIDTH * small[0] * small[1])
        self.body = nn.Sequential(
            nn.Unflatten(1, (WIDTH, *small)),
            nn.GroupNorm(4, WIDTH),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.GroupNorm(4, WIDTH),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(WIDTH, WIDTH // 2, 3, padding=1, bias=False),
            nn.GroupNorm(4, WIDTH // 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(WIDTH // 2, channels, 3, padding=1),
            nn.Sigmoid(),
        )
        for name, numbers in (("mean", normalisation.mean), ("std", normalisation.std)):
            self.register_buffer(name, torch.tensor(numbers).reshape(-1, 1, 1), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        height, width = self.shape[-2:]
        pixels = self.body(self.start(z))[:, :, :height, :width]
        images: Tensor = (pixels - self.mean) / self.std
        return images.reshape(-1, *self.shape)


def generate(task: Supervised, *, normalisation: Normalisation) -> Definition:
    """Dreams X = G(z) of numbers z, which are standard normal at first."""
    module = _generator(task, normalisation)

    def step(values: Values) -> dict[str, Tensor]:
        return {"x": functional_call(module, _given(module, values), values[LATENT])}

    def oracle(values: Values) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"x": _loaded(task, normalisation, values)(values[LATENT])}

    output = Output("x", "float32", ("batch", *task.samples.example.shape[1:]), "concat")
    brings = _state(module)
    return Definition("generate", (_z(),), (output,), {}, step, oracle, brings=brings, samples=_samples(task))


def generator_step(task: Supervised, *, normalisation: Normalisation) -> Definition:
    """The gradients of L(G(z)) by each tensor of G and by z, times the setting `gradient_scale`; nothing is written.

    Every term of L is of the whole batch, so a task takes all z in one.
    """
    module = _generator(task, normalisation)
    objective = Objective(task)
    names = [name for name, _ in module.named_parameters()]

    def step(values: Values) -> dict[str, Tensor]:
        with torch.enable_grad():
            z = values[LATENT].detach().requires_grad_()
            weights = {name: w.detach().requires_grad_() for name, w in _given(module, values).items()}
            terms = objective.terms(values, functional_call(module, weights, z))
            loss = (terms * factors_of(values)).sum() * values[GRADIENT_SCALE]
            by_z, *by_weight = torch.autograd.grad(loss, [z, *weights.values()])
        found = dict(zip(map(_gradient, names), by_weight, strict=True))
        return found | {GRADIENT_Z: by_z} | objective.report(terms.detach(), values)

    def oracle(values: Values) -> dict[str, Tensor]:
        mine = _loaded(task, normalisation, values)
        z = values[LATENT].clone().requires_grad_()
        terms = objective.torch(values, mine(z))
        (terms @ factors_of(values) * values[GRADIENT_SCALE]).backward()  # type: ignore[no-untyped-call]
        found = {_gradient(name): w.grad for name, w in mine.named_parameters() if w.grad is not None}
        assert z.grad is not None
        return found | {GRADIENT_Z: z.grad} | objective.report(terms.detach(), values)

    outputs = [Output(_gradient(name), "float32", tuple(w.shape), "mean") for name, w in module.named_parameters()]
    by_z = Output(GRADIENT_Z, "float32", ("batch", NUMBERS), "concat")
    return Definition(
        "generator_step",
        (_z(), *objective.settings, SCALING),
        (*outputs, by_z, *objective.outputs),
        {},
        step,
        oracle,
        brings=_state(module) | objective.eyes.state(),
        samples=_samples(task),
    )


def _z() -> Input:
    return Input(LATENT, "float32", ("batch", NUMBERS), "features")


def _samples(task: Supervised) -> Samples:
    """Random z."""
    return Samples(torch.zeros(1, NUMBERS), task.loss, task.samples.kind, 2)


def _generator(task: Supervised, normalisation: Normalisation) -> Generator:
    """With the same weights for everybody."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Generator(tuple(task.samples.example.shape[1:]), normalisation)


def _state(module: Generator) -> dict[str, Tensor]:
    return {f"{GENERATOR}{name}": w.detach() for name, w in module.named_parameters()}


def _given(module: Generator, values: Values) -> dict[str, Tensor]:
    """The generator's own names -> the values."""
    return {name: values[f"{GENERATOR}{name}"] for name, _ in module.named_parameters()}


def _loaded(task: Supervised, normalisation: Normalisation, values: Values) -> Generator:
    """A generator that holds the values, in their precision."""
    module = _generator(task, normalisation).to(values[LATENT].dtype)
    module.load_state_dict(_given(module, values))
    return module


def _gradient(name: str) -> str:
    return f"{GRADIENT}{GENERATOR}{name}"
