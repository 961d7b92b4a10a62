"""Deep equilibrium models: one block applied until its output stands still (Bai et al. 2019, arXiv:1909.01377).

A device chooses how long it solves: more steps cost time, but neither memory nor bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from edgefl.errors import InputError, LoweringError
from edgefl.names import MAX_STEPS, TOLERANCE
from edgefl_exporter.lowering.loop import repeat
from edgefl_exporter.models.parts import declare_setting
from edgefl_exporter.programs.losses import Labels, Loss
from edgefl_exporter.torch_internals import AnyDropout, AnyNorm

SOLVER_STEPS, RESIDUAL = "solver_steps", "residual"
TINY = 1e-6  # added to norms that divide
MOST_PHANTOM_STEPS, MOST_HISTORY = 3, 5

Memory = tuple[Tensor, ...]


class Solver(Protocol):
    """How the next iterate is made of what was computed so far, each example by itself."""

    def start(self, z: Tensor) -> Memory:
        """What it remembers before the first step: tensors [batch, ...]."""
        ...

    def advance(self, z: Tensor, fz: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The next iterate, made of z and f(z), and what it remembers then."""
        ...


@dataclass(frozen=True)
class Damped:
    """z <- z + damping (f(z) - z). With damping 1 the plain iteration."""

    damping: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1:
            raise InputError(f"damping is {self.damping}; expected more than 0, at most 1")

    def start(self, z: Tensor) -> Memory:
        return ()

    def advance(self, z: Tensor, fz: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        return (fz if self.damping == 1 else z + self.damping * (fz - z)), ()


@dataclass(frozen=True)
class Anderson:
    """The sum of the last f(z), with weights that sum to 1, whose residual is least (Walker, Ni 2011,
    doi:10.1137/10078356X).

    With C the correlations of the residuals and s their norms, the weights are (1/s) * C^-1 (1/s), normalised.
    `ridge` is added to the diagonal of C, because successive residuals are nearly parallel.
    """

    history: int = 3
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if not 2 <= self.history <= MOST_HISTORY:
            raise InputError(f"Anderson's history is {self.history}; expected 2 to {MOST_HISTORY}")
        if not self.ridge > 0:
            raise InputError(f"Anderson's ridge is {self.ridge}; expected more than 0")

    def start(self, z: Tensor) -> Memory:
        row = torch.zeros_like(z).flatten(1).unsqueeze(1)
        empty = torch.cat([row] * self.history, 1)  # [batch, history, numbers], the newest last
        return empty, empty

    def advance(self, z: Tensor, fz: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        values, residuals = (
            torch.cat([old[:, 1:], new.flatten(1).unsqueeze(1)], 1)
            for old, new in zip(memory, (fz, fz - z), strict=True)
        )
        norms = residuals.square().sum(2).sqrt()  # [batch, history]; 0 where there is none yet
        unit = residuals / (norms + TINY**2).unsqueeze(2)
        products = unit @ unit.transpose(1, 2)
        newest = norms[:, -1:] + TINY**2
        wanted = torch.where(norms > 0, newest / (norms + TINY**2), 0.0)  # 1/s, but for a factor
        wanted = torch.cat([wanted[:, :-1], torch.ones_like(newest)], 1)
        m = range(self.history)
        matrix = [[products[:, i, j] if i != j else products[:, i, i] * 0 + (1 + self.ridge) for j in m] for i in m]
        weights = torch.stack(_solved(matrix, [wanted[:, i] for i in m]), 1) * wanted
        weights = weights / weights.sum(1, keepdim=True)
        return (weights.unsqueeze(1) @ values).reshape(z.shape), (values, residuals)


def _solved(matrix: list[list[Tensor]], right: list[Tensor]) -> list[Tensor]:
    """x with matrix x = right, for each example: elimination without pivots, which a positive definite matrix needs
    none of. Elements are [batch]; both arguments are used up."""
    n = len(right)
    for i in range(n):
        for row in range(i + 1, n):
            factor = matrix[row][i] / matrix[i][i]
            for column in range(i + 1, n):
                matrix[row][column] = matrix[row][column] - factor * matrix[i][column]
            right[row] = right[row] - factor * right[i]
    for i in reversed(range(n)):
        for column in range(i + 1, n):
            right[i] = right[i] - matrix[i][column] * right[column]
        right[i] = right[i] / matrix[i][i]
    return right


class Solved(NamedTuple):
    """What an equilibrium model returns.

    output     the head's
    steps      how many steps each example's solve took, [batch]
    residual   |f(z) - z| / |z| at the end of each example's solve, [batch]
    """

    output: Tensor
    steps: Tensor
    residual: Tensor


class Equilibrium(nn.Module):
    """See `equilibrium`."""

    def __init__(
        self,
        inject: nn.Module,
        block: nn.Module,
        head: nn.Module,
        *,
        max_steps: int = 16,
        tolerance: float = 1e-3,
        phantom_steps: int = 1,
        solver: Solver = Damped(),
    ) -> None:
        super().__init__()
        if not 1 <= phantom_steps <= MOST_PHANTOM_STEPS:
            raise InputError(f"{phantom_steps} phantom steps; expected 1 to {MOST_PHANTOM_STEPS}")
        for path, child in block.named_modules():
            _check_part(f"block.{path}" if path else "block", child)
        self.inject, self.block, self.head = inject, block, head
        self.phantom_steps, self.solver = phantom_steps, solver
        declare_setting(self, MAX_STEPS, max_steps)
        declare_setting(self, TOLERANCE, tolerance)

    def forward(self, x: Tensor) -> Solved:
        u = self.inject(x)
        z, steps = self.solve(u.detach())
        residual = torch.zeros_like(steps)
        for step in range(self.phantom_steps):
            before, z = z, self._step(z, u)
            if step == 0:
                residual = _relative_residual(before, z.detach())
        return Solved(self.head(z), steps, residual)

    def solve(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """z with z = f(z, u) as nearly as the settings ask, and how many steps each example took, [batch]. No gradient.

        Each example stops by itself, so that its result does not depend on what else is in the batch.
        """
        most, tolerance = self.get_buffer(MAX_STEPS), self.get_buffer(TOLERANCE)

        def body(states: Memory) -> tuple[Memory, Tensor]:
            z, residual, steps, *memory = states
            fz = self._step(z, u)
            moving = residual >= tolerance  # [batch]
            after, remembered = self.solver.advance(z, fz, tuple(memory))
            z_after = torch.where(moving.reshape(-1, *[1] * (z.dim() - 1)), after, z)
            residual = torch.where(moving, _relative_residual(z, fz), residual)
            steps = steps + moving.to(steps.dtype)
            return (z_after, residual, steps, *remembered), (residual >= tolerance).any()

        start = torch.zeros_like(u)
        none = torch.zeros_like(u.flatten(1)[:, 0])
        z, _, steps, *_ = repeat(body, (start, none + torch.inf, none, *self.solver.start(start)), most)
        return z, steps

    def _step(self, z: Tensor, u: Tensor) -> Tensor:
        fz = self.block(z, u)
        if not isinstance(fz, Tensor) or fz.shape != z.shape:
            got = list(fz.shape[1:]) if isinstance(fz, Tensor) else type(fz).__name__
            raise LoweringError(
                f"an equilibrium's block gives {got} from z and u of {list(z.shape[1:])}; expected the same shape",
                hint="what inject gives has the shape of z",
            )
        return fz

    def read_by(self, loss: Loss) -> Loss:
        return SolvedLoss(loss)


def equilibrium(
    inject: nn.Module,
    block: nn.Module,
    head: nn.Module,
    *,
    max_steps: int = 16,
    tolerance: float = 1e-3,
    phantom_steps: int = 1,
    solver: Solver = Damped(),
) -> Equilibrium:
    """head(z) where z = block(z, u) and u = inject(x).

    block            (z, u) -> the next z; z, u and the result have one shape [batch, ...]. It must contract, or nothing
                     is solved; it may neither draw random numbers nor keep statistics over the batch
    max_steps        of the solve; the default of the setting `max_steps` of each program
    tolerance        an example is solved when |f(z) - z| / |z| is less; the default of the setting `tolerance`
    phantom_steps    how often the block is applied to the solution; through these the gradient goes (Geng et al. 2021,
                     arXiv:2111.05177), so 1 to 3: more of them cost memory, and come nearer to the implicit gradient
    solver           Damped or Anderson

    Every program also reports `solver_steps`, the mean of steps taken, and `residual`, the mean relative residual at
    the end of the solve. Raises InputError for what cannot be.

    Whether an example is solved is a yes or no that rounding may turn: two runtimes may then differ by one step of one
    example. An export's proof takes half and one and a half of each default, and holds a difference against none
    where a rounding-sized change turns PyTorch's own answer too (`edgefl_exporter.proof.judge`); with tolerance 0
    nothing is decided and every example takes max_steps.
    """
    return Equilibrium(
        inject, block, head, max_steps=max_steps, tolerance=tolerance, phantom_steps=phantom_steps, solver=solver
    )


@dataclass(frozen=True)
class SolvedLoss:
    """A loss of what the head gives; beside it, what the solve cost and how far it came."""

    base: Loss

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def measures(self) -> tuple[tuple[str, Literal["mean", "sum"]], ...]:
        return (*self.base.measures, (SOLVER_STEPS, "mean"), (RESIDUAL, "mean"))

    def labels(self, output: Any) -> Labels:
        return self.base.labels(output.output)

    def sample(self, labels: Labels, count: int, generator: torch.Generator) -> Tensor:
        return self.base.sample(labels, count, generator)

    def predictions(self, output: Any) -> dict[str, Tensor]:
        return self.base.predictions(output.output)

    def each(self, output: Any, labels: Tensor) -> Tensor:
        return self.base.each(output.output, labels)

    def torch(self, output: Any, labels: Tensor) -> Tensor:
        return self.base.torch(output.output, labels)

    def measure(self, output: Any, labels: Tensor) -> dict[str, Tensor]:
        found = {SOLVER_STEPS: output.steps, RESIDUAL: output.residual}
        return self.base.measure(output.output, labels) | found

    def slack(self, output: Any) -> dict[str, Tensor]:
        return self.base.slack(output.output)


def _relative_residual(z: Tensor, fz: Tensor) -> Tensor:
    """|f(z) - z| / |z| of each example, [batch]."""
    return (fz - z).flatten(1).square().sum(1).sqrt() / (z.flatten(1).square().sum(1).sqrt() + TINY)


def _check_part(path: str, module: nn.Module) -> None:
    """Raises InputError for a layer that is not one function during a solve."""
    kind = type(module).__name__
    if isinstance(module, AnyNorm):
        raise InputError(
            f"module {path!r} of an equilibrium is {kind}: its statistics would change with each step of the solve",
            hint="use GroupNorm or LayerNorm; BatchNorm may be in inject and head",
        )
    if isinstance(module, AnyDropout | nn.RReLU):
        raise InputError(
            f"module {path!r} of an equilibrium is {kind}: each step of the solve would be another function",
            hint="put dropout into inject or head",
        )
