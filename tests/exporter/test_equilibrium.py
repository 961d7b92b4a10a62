"""Deep equilibrium models: the solve as an ONNX Loop against a plain Python loop, its gradient against the exact one.

The oracle is written here once more from the equations: example by example, with autograd through the phantom steps.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefl.bundle import Bundle
from edgefl.errors import InputError, LoweringError
from edgefl.replay import relative_error
from edgefl.tensors import Array
from edgefl_device.engines.runtime import Runtime
from edgefl_exporter import export
from edgefl_exporter.programs.equilibrium import Anderson, Damped, Equilibrium, Solver, equilibrium
from edgefl_exporter.zoo.equilibrium import CONTRACTION, ConvInhibition, Inhibition, spectral_bound

WIDTH = 12


class Block(nn.Module):
    """tanh(c W z + u), W of spectral norm 1: contracts by c."""

    def __init__(self, contraction: float = 0.9) -> None:
        super().__init__()
        weight = torch.randn(WIDTH, WIDTH)
        self.weight = nn.Parameter(contraction * weight / torch.linalg.matrix_norm(weight, 2))

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(F.linear(z, self.weight) + u)


def model(block: nn.Module | None = None, **options: Any) -> Equilibrium:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return equilibrium(nn.Linear(6, WIDTH), block or Block(), nn.Linear(WIDTH, 3), **options)


def inputs(count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 6, generator=generator), torch.arange(count) % 3


def solved(net: Equilibrium, x: Tensor, most: int, tolerance: float, damping: float = 1.0) -> tuple[Tensor, list[int]]:
    """z* [batch, width] and the steps of each example: the iteration of methods.md, one example at a time."""
    rows, steps = [], []
    with torch.no_grad():
        for u in net.inject(x).split(1):
            z, taken = torch.zeros_like(u), 0
            for _ in range(most):
                fz = net.block(z, u)
                residual = (fz - z).norm() / (z.norm() + 1e-6)
                z, taken = z + damping * (fz - z), taken + 1
                if residual < tolerance:
                    break
            rows.append(z)
            steps.append(taken)
    return torch.cat(rows), steps


def answer(net: Equilibrium, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logits after the phantom steps, through which autograd goes, and each example's residual before them."""
    u = net.inject(x)
    residual = (net.block(z, u) - z).norm(dim=1) / (z.norm(dim=1) + 1e-6)
    for _ in range(net.phantom_steps):
        z = net.block(z, u)
    return net.head(z), residual


def ask(bundle: Bundle, program: str, x: Tensor, y: Tensor | None, most: int, tolerance: float) -> dict[str, Array]:
    given = {"x": x.numpy(), "max_steps": np.array(most, np.float32), "tolerance": np.array(tolerance, np.float32)}
    if y is not None:
        given["y"] = y.numpy()
    return Runtime(bundle).step(program, given)


@pytest.fixture(scope="module")
def net() -> Equilibrium:
    return model(phantom_steps=2)


@pytest.fixture(scope="module")
def bundle(net: Equilibrium, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("equilibrium")
    return export(net, torch.zeros(1, 6), out=folder / "b", name="b", programs=("gradient", "evaluate", "predict"))


BUDGETS = [(1, 0.0), (3, 1e-3), (32, 0.0), (32, 1e-2), (32, 1e-4)]


@pytest.mark.parametrize("most, tolerance", BUDGETS)
def test_a_program_solves_as_a_plain_loop_does(net: Equilibrium, bundle: Bundle, most: int, tolerance: float) -> None:
    x, y = inputs()
    z, steps = solved(net, x, most, tolerance)
    logits, residual = answer(net, z, x)
    logits = logits.detach()
    assert relative_error(ask(bundle, "predict", x, None, most, tolerance)["logits"], logits.numpy()) < 1e-6
    got = ask(bundle, "evaluate", x, y, most, tolerance)
    assert got["solver_steps"].item() == pytest.approx(np.mean(steps))
    # The difference of two nearly equal vectors: rounding is 1e-7 of z, not of the residual.
    assert got["residual"].item() == pytest.approx(residual.mean().item(), rel=1e-5, abs=2e-7)
    assert got["loss"].item() == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-6)


def test_examples_stop_by_themselves(net: Equilibrium, bundle: Bundle) -> None:
    """Some need more steps than others, and what one gets does not depend on the others in its batch."""
    x, _ = inputs()
    _, steps = solved(net, x, 32, 1e-3)
    assert len(set(steps)) > 1 and max(steps) < 32
    together = ask(bundle, "predict", x, None, 32, 1e-3)["logits"]
    alone = [ask(bundle, "predict", row, None, 32, 1e-3)["logits"] for row in x.split(1)]
    assert relative_error(np.concatenate(alone), together) < 1e-6


@pytest.mark.parametrize("most, tolerance", BUDGETS)
def test_the_gradient_goes_through_the_phantom_steps_only(
    net: Equilibrium, bundle: Bundle, most: int, tolerance: float
) -> None:
    x, y = inputs()
    logits, _ = answer(net, solved(net, x, most, tolerance)[0], x)
    want = torch.autograd.grad(F.cross_entropy(logits, y), list(net.parameters()))
    got = ask(bundle, "gradient", x, y, most, tolerance)
    for (name, _), gradient in zip(net.named_parameters(), want, strict=True):
        assert relative_error(got[f"gradient.{name}"], gradient.numpy()) < 2e-6, name


def test_more_steps_leave_a_smaller_residual(bundle: Bundle) -> None:
    x, y = inputs()
    residuals = [ask(bundle, "evaluate", x, y, most, 0.0)["residual"].item() for most in (1, 2, 4, 8, 16)]
    assert all(later < earlier for earlier, later in itertools.pairwise(residuals))
    assert residuals[-1] < 1e-3 * residuals[0]


def test_phantom_steps_come_near_the_implicit_gradient() -> None:
    """dL/dz (I - df/dz)^-1 df/dw at the solution, by a linear solve in float64, against phantom gradients of 1, 2, 3
    and 60 steps."""
    x, y = inputs()
    net = model(Block(0.5)).double()
    net.max_steps.fill_(200)
    net.tolerance.fill_(0)
    weight = net.get_parameter("block.weight")
    u = net.inject(x.double()).detach()
    z, _ = net.solve(u)
    z.requires_grad_()
    pull = torch.autograd.grad(F.cross_entropy(net.head(z), y), z)[0]
    fz = net.block(z, u)
    jacobian = torch.stack(
        [torch.autograd.grad(fz.flatten()[i], z, retain_graph=True)[0].flatten() for i in range(fz.numel())]
    )
    adjoint = torch.linalg.solve((torch.eye(fz.numel(), dtype=torch.float64) - jacobian).t(), pull.flatten())
    (exact,) = torch.autograd.grad(fz, weight, adjoint.reshape(fz.shape))

    def cosine(steps: int) -> float:
        net.phantom_steps = steps
        loss = F.cross_entropy(net(x.double()).output, y)
        (gradient,) = torch.autograd.grad(loss, weight)
        return F.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0).item()

    found = [cosine(steps) for steps in (1, 2, 3, 60)]
    assert found == sorted(found)
    assert found[0] > 0.9 and found[1] > 0.99 and found[2] > 0.999 and found[3] == pytest.approx(1.0, abs=1e-12)


def test_anderson_solves_the_same_in_half_the_steps() -> None:
    """The zoo's block is slow: it contracts by little less than 0.9 where no unit inhibits another."""
    x, _ = inputs(50)
    net = model(Inhibition(WIDTH), max_steps=200, tolerance=1e-4)
    with torch.no_grad():
        plain = net(x)
        net.solver = Anderson()
        mixed = net(x)
    assert mixed.steps.mean() < 0.5 * plain.steps.mean()
    assert bool((mixed.residual < 1e-4).all())
    assert torch.allclose(mixed.output, plain.output, atol=2e-3)


@pytest.mark.parametrize("solver", [Damped(0.5), Anderson(4)], ids=str)
def test_every_solver_is_lowered_as_it_runs_in_pytorch(solver: Solver, tmp_path: Path) -> None:
    net = model(solver=solver)
    bundle = export(net, torch.zeros(1, 6), out=tmp_path / "b", name="b", programs=("predict",))
    x, _ = inputs()
    for most in (1, 5, 20):
        net.max_steps.fill_(most)
        net.tolerance.fill_(0)
        with torch.no_grad():
            want = net(x).output
        # Anderson's weights are the solution of a system with a condition of up to 5e3.
        assert relative_error(ask(bundle, "predict", x, None, most, 0.0)["logits"], want.numpy()) < 1e-5


def test_a_damped_iteration_is_the_equation(tmp_path: Path) -> None:
    net = model(solver=Damped(0.4), max_steps=6, tolerance=0)
    x, _ = inputs()
    z, _ = solved(net, x, 6, 0.0, damping=0.4)
    with torch.no_grad():
        assert torch.allclose(net(x).output, answer(net, z, x)[0], atol=1e-6)


def test_the_padding_of_a_fixed_batch_neither_counts_nor_changes_a_solve(tmp_path: Path) -> None:
    net = model()
    bundle = export(net, torch.zeros(1, 6), out=tmp_path / "b", name="b", batch=8, programs=("gradient",))
    x, y = inputs(5)
    _, steps = solved(net, x, 16, 1e-3)
    padded = {
        "x": torch.cat([x, 100 * x[:3]]).numpy(),
        "y": torch.cat([y, y[:3]]).numpy(),
        "present": (np.arange(8) < 5).astype(np.float32),
        "max_steps": np.array(16, np.float32),
        "tolerance": np.array(1e-3, np.float32),
    }
    assert Runtime(bundle).step("gradient", padded)["solver_steps"].item() == pytest.approx(np.mean(steps))


def test_without_steps_the_solution_is_zero(bundle: Bundle, net: Equilibrium) -> None:
    x, _ = inputs()
    want = answer(net, torch.zeros(7, WIDTH), x)[0].detach().numpy()
    assert relative_error(ask(bundle, "predict", x, None, 0, 1e-3)["logits"], want) < 1e-6


class With(nn.Module):
    """Block, with another layer after it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.block, self.layer = Block(), layer

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        after: Tensor = self.layer(self.block(z, u))
        return after


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(WIDTH))

    def forward(self, z: Tensor) -> Tensor:
        self.get_buffer("seen").add_(z.mean(0))
        return z


class Noise(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return F.dropout(z, 0.5)


@pytest.mark.parametrize(
    "layer, words",
    [
        (nn.BatchNorm1d(WIDTH), r"module 'block.layer' .* is BatchNorm1d: its statistics would change"),
        (nn.Dropout(0.1), r"module 'block.layer' .* is Dropout: each step of the solve would be another function"),
    ],
    ids=["BatchNorm", "Dropout"],
)
def test_a_layer_that_changes_from_step_to_step_is_refused_by_name(layer: nn.Module, words: str) -> None:
    with pytest.raises(InputError, match=words):
        model(With(layer))


@pytest.mark.parametrize(
    "layer, words",
    [
        (Noise(), r"native_dropout.* in the block of an equilibrium"),
        (Sums(), "the block of an equilibrium changes more than it returns"),
        (nn.Linear(WIDTH, 5), r"block gives \[5\] from z and u of \[12\]; expected the same shape"),
    ],
    ids=["dropout", "buffer", "shape"],
)
def test_a_block_that_is_no_function_of_z_and_u_is_not_exported(layer: nn.Module, words: str, tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=words):
        export(model(With(layer)), torch.zeros(1, 6), out=tmp_path / "b", name="b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: model(phantom_steps=4), "4 phantom steps; expected 1 to 3"),
        (lambda: Damped(0.0), "damping is 0.0"),
        (lambda: Anderson(history=9), "history is 9; expected 2 to 5"),
        (lambda: Anderson(ridge=0.0), "ridge is 0.0"),
    ],
)
def test_what_cannot_be_solved_is_refused(make: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize("shape", [(3, 3), (8, 8), (64, 64), (16, 40)])
def test_the_bound_is_no_less_than_the_norm_and_little_more(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    for matrix in (torch.randn(shape, generator=generator), torch.eye(*shape), torch.ones(shape)):
        norm = torch.linalg.matrix_norm(matrix, 2).item()
        assert norm * 0.99999 <= spectral_bound(matrix).item() <= norm * shape[0] ** (1 / 16) * 1.00001


@pytest.mark.parametrize(
    "block, shape", [(Inhibition(10), (10,)), (ConvInhibition(4), (4, 5, 5))], ids=["dense", "conv"]
)
def test_the_zoo_s_blocks_contract_whatever_their_weights(block: Any, shape: tuple[int, ...]) -> None:
    """The linear part as a matrix: its norm is at most c; and the ReLU after it moves nothing further apart."""
    generator = torch.Generator().manual_seed(3)
    for scale in (0.01, 1.0, 100.0):
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            size = int(np.prod(shape))
            columns = block.linear(torch.eye(size).reshape(size, *shape)).flatten(1)
            assert torch.linalg.matrix_norm(columns, 2).item() <= CONTRACTION * 1.0001
            a, b, u = torch.randn(3, 20, *shape, generator=generator)
            moved = (block(a, u) - block(b, u)).flatten(1).norm(dim=1)
            assert bool((moved <= CONTRACTION * 1.0001 * (a - b).flatten(1).norm(dim=1)).all())
