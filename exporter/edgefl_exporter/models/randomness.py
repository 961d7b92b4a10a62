"""Random numbers that are the same in PyTorch and in a program, on every platform.

A program cannot use ONNX's generators: they are seeded once per session and differ between runtimes. So every random
operator of a model is computed from a hash of (seed, step, site, element): `seed` comes from task and device, `step`
counts training steps in the state tensor "random_step", `site` counts the calls within one forward pass. The hash is
32-bit integer arithmetic; a mask is therefore bit-identical everywhere. Here is its numpy form, which PyTorch runs when
it is the oracle; `lowering/hashing.py` has the ONNX form.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgefl.errors import LoweringError
from edgefl.manifest import Input
from edgefl_exporter.models.checkpoints import without_recomputation
from edgefl_exporter.torch_internals import TorchDispatchMode

aten = torch.ops.aten

SEED = Input("seed", "int64", (), "seed")
STEP_BUFFER = "random_step"  # state: how many steps the model has trained
SEED_BUFFER = "random_seed"  # not state: given at each call

# A 32-bit mixer found by exhaustive search for low bias: github.com/skeeto/hash-prospector, issue 19 (0.107).
SHIFTS = (16, 15, 15)
FACTORS = (0x21F0AAAD, 0xD35A2D97)
STREAMS = (0x9E3779B9, 0x7F4A7C15)  # two streams of keys, 64 bits together: any two odd numbers

Words = npt.NDArray[np.uint32]


def with_randomness(model: object, x: Tensor) -> object:
    """The model itself if it draws no random numbers on `x`, else a copy that draws them from the hash."""
    if not isinstance(model, nn.Module):
        return model
    drawing = Drawing(_draws(model, x, training=True), _draws(model, x, training=False))
    if not drawing.training and not drawing.evaluation:
        return model
    module = copy.deepcopy(model)
    for name, persistent in ((STEP_BUFFER, True), (SEED_BUFFER, False)):
        if hasattr(module, name):
            raise LoweringError(f"the model has an attribute {name!r}, as its randomness will", hint="rename it")
        module.register_buffer(name, torch.zeros((), dtype=torch.int64), persistent=persistent)
    module.register_forward_pre_hook(drawing.enter)
    module.register_forward_hook(drawing.leave, always_call=True)
    return module


def draws(module: nn.Module, *, training: bool) -> bool:
    """Whether a model that `with_randomness` gave draws random numbers."""
    hooks = [getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values()]
    return any(hook.training if training else hook.evaluation for hook in hooks if isinstance(hook, Drawing))


class Drawing:
    """While its model runs, random operators are computed from the hash; a training step counts one up."""

    def __init__(self, training: bool, evaluation: bool) -> None:
        self.training, self.evaluation = training, evaluation
        self._open: list[contextlib.ExitStack] = []

    def enter(self, module: nn.Module, _args: object) -> None:
        seed, step = module.get_buffer(SEED_BUFFER), module.get_buffer(STEP_BUFFER)
        block = contextlib.ExitStack()
        block.enter_context(without_recomputation())
        block.enter_context(_Drawn(seed, step.clone()))
        self._open.append(block)

    def leave(self, module: nn.Module, _args: object, _result: object) -> None:
        self._open.pop().close()
        if module.training:
            module.get_buffer(STEP_BUFFER).add_(1)


def keys(seed: int, step: int, site: int) -> Words:
    """Two 32-bit keys of one call."""
    words = np.array([seed & 0xFFFFFFFF, step & 0xFFFFFFFF], np.uint32)
    base = mix(mix(words[0] ^ np.array(STREAMS, np.uint32)) ^ words[1])
    return base ^ site_words(site)


def site_words(site: int) -> Words:
    """What tells the calls of one forward pass apart: two constants of the program."""
    return mix(mix(np.array(STREAMS, np.uint32)) + np.uint32(site & 0xFFFFFFFF))


def mix(x: Words, key: Words | None = None) -> Words:
    """A bijection of 32-bit words that spreads every bit; `key` goes in after the first multiplication."""
    x = x ^ (x >> np.uint32(SHIFTS[0]))
    x = x * np.uint32(FACTORS[0])
    x = x if key is None else x ^ key
    x = x ^ (x >> np.uint32(SHIFTS[1]))
    x = x * np.uint32(FACTORS[1])
    mixed: Words = x ^ (x >> np.uint32(SHIFTS[2]))
    return mixed


def hashed(seed: int, step: int, site: int, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Numbers 0 <= u < 1, multiples of 2^-24, equally likely."""
    first, second = keys(seed, step, site)
    counter = np.arange(math.prod(shape), dtype=np.uint32)
    words = mix(counter ^ first, second)
    fractions: npt.NDArray[np.float32] = (words >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
    return fractions.reshape(shape)


@torch.library.custom_op("edgefl::uniform", mutates_args=(), schema="(Tensor a, Tensor b, int c, SymInt[] d) -> Tensor")
def uniform(seed: Tensor, step: Tensor, site: int, size: Sequence[int]) -> Tensor:
    return torch.from_numpy(hashed(int(seed), int(step), site, tuple(size)))


@uniform.register_fake
def _(seed: Tensor, step: Tensor, site: int, size: Sequence[int]) -> Tensor:
    return seed.new_empty(size, dtype=torch.float32)


class _Drawn(TorchDispatchMode):
    """While the block runs, random operators are computed from the hash."""

    def __init__(self, seed: Tensor, step: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seed, self._step, self._site = seed, step, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        draw = DRAWS.get(func)
        return func(*args, **(kwargs or {})) if draw is None else draw(self.uniform, *args, **(kwargs or {}))

    def uniform(self, size: Sequence[int]) -> Tensor:
        self._site += 1
        return torch.ops.edgefl.uniform(self._seed, self._step, self._site - 1, size)  # type: ignore[no-any-return]


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether a random operator ran."""

    any = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.any = self.any or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _draws(model: nn.Module, x: Tensor, *, training: bool) -> bool:
    """Whether the model's forward pass draws random numbers. A model that fails draws none: others report that."""
    seen = _Seen()  # type: ignore[no-untyped-call]
    try:
        module = copy.deepcopy(model)
        if module.training != training:  # else its parts may each have a mode of their own
            module.train(training)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), seen:
            module(torch.cat([x] * 2))
    except Exception:
        return False
    return seen.any


Uniform = Callable[[Sequence[int]], Tensor]


def _normal(u: Uniform, size: Sequence[int]) -> Tensor:
    """Box and Muller's transform. The rounding of log and cos may differ between platforms by a last bit."""
    radius = (-2 * torch.log(1 - u(size))).sqrt()
    return radius * torch.cos(2 * math.pi * u(size))


def _exponential(u: Uniform, size: Sequence[int]) -> Tensor:
    """Never zero, because the next thing is a logarithm (Gumbel)."""
    return (-torch.log(1 - u(size))).clamp(min=2**-26)


def _below(u: Uniform, p: float | Tensor, like: Tensor) -> Tensor:
    return (u(like.shape) < p).to(like.dtype)


def _integers(u: Uniform, low: int, high: int, size: Sequence[int], dtype: torch.dtype | None) -> Tensor:
    if high - low > 2**24:
        raise LoweringError(
            f"random integers in a range of {high - low:,}: at most {2**24:,} are exact", hint="draw a smaller range"
        )
    drawn = (u(size) * (high - low)).to(torch.int64).clamp(max=high - low - 1) + low
    return drawn.to(dtype or torch.int64)


def _dropout(u: Uniform, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if train is False:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    kept = u(x.shape) < 1 - p
    return x * (kept.to(x.dtype) * (0.0 if p == 1 else 1 / (1 - p))), kept


def _dtype(given: dict[str, Any], otherwise: torch.dtype = torch.float32) -> torch.dtype:
    found: torch.dtype = given.get("dtype") or otherwise
    return found


# Random operator -> the same distribution from uniform numbers. In-place ones change their first argument.
DRAWS: dict[Any, Callable[..., Any]] = {
    aten.bernoulli.default: lambda u, p, **k: _below(u, p, p),
    aten.bernoulli.p: lambda u, x, p=0.5, **k: _below(u, p, x),
    aten.bernoulli_.float: lambda u, x, p=0.5, **k: x.copy_(_below(u, p, x)),
    aten.bernoulli_.Tensor: lambda u, x, p, **k: x.copy_(_below(u, p, x)),
    aten.native_dropout.default: _dropout,
    aten.rand.default: lambda u, size, **k: u(size).to(_dtype(k)),
    aten.rand_like.default: lambda u, x, **k: u(x.shape).to(_dtype(k, x.dtype)),
    aten.uniform_.default: lambda u, x, low=0.0, high=1.0, **k: x.copy_(u(x.shape) * (high - low) + low),
    aten.randn.default: lambda u, size, **k: _normal(u, size).to(_dtype(k)),
    aten.randn_like.default: lambda u, x, **k: _normal(u, x.shape).to(_dtype(k, x.dtype)),
    aten.normal_.default: lambda u, x, mean=0.0, std=1.0, **k: x.copy_(_normal(u, x.shape) * std + mean),
    aten.normal.Tensor_float: lambda u, mean, std=1.0, **k: _normal(u, mean.shape) * std + mean,
    aten.normal.float_Tensor: lambda u, mean, std, **k: _normal(u, std.shape) * std + mean,
    aten.normal.Tensor_Tensor: lambda u, mean, std, **k: _normal(u, (mean + std).shape) * std + mean,
    aten.exponential_.default: lambda u, x, rate=1.0, **k: x.copy_(_exponential(u, x.shape) / rate),
    aten.randint.default: lambda u, high, size, **k: _integers(u, 0, high, size, k.get("dtype")),
    aten.randint.low: lambda u, low, high, size, **k: _integers(u, low, high, size, k.get("dtype")),
    aten.randint_like.default: lambda u, x, high, **k: _integers(u, 0, high, x.shape, _dtype(k, x.dtype)),
    aten.randint_like.low_dtype: lambda u, x, low, high, **k: _integers(u, low, high, x.shape, _dtype(k, x.dtype)),
}
