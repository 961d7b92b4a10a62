"""A pure PyTorch function becomes a graph of ATen operators, backward pass included, with a dynamic batch dimension.

Everything runs on fake tensors: no arithmetic is done, and only the batch dimension is a symbol.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx import traceback as fx_traceback
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgefl.errors import LoweringError, said
from edgefl_exporter.lowering.decompose import backward_table
from edgefl_exporter.lowering.loop import traced_loops
from edgefl_exporter.lowering.portable import Portable
from edgefl_exporter.lowering.refusal import Place, calling_line, failing_line, refusal
from edgefl_exporter.lowering.torch_internals import (
    LOGGERS,
    ConstantSource,
    DimDynamic,
    FakeTensorMode,
    ShapeEnv,
    StatelessSymbolicContext,
    UnsupportedOperatorException,
    enable_python_dispatcher,
    make_fx,
)
from edgefl_exporter.models.checkpoints import without_recomputation
from edgefl_exporter.torch_internals import (
    TorchDispatchMode,
    backward_number,
    forward_number,
)

Step = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

# The batch size while tracing: no layer is likely to have this width, so a shape that contains it is a batch.
TRACED_BATCH = 7
# Batch sizes for which every condition met while tracing must give the same answer. Size 1 is not among them: torch
# itself assumes that a dynamic dimension is not 1; the parity proof tries it on the finished program.
TRIED_BATCHES = (2, 3, 5, 8, 10, 32, 100, 600, 10_000)


@dataclass(frozen=True)
class Traced:
    """A graph whose placeholders are `inputs` and whose results are `outputs`, in order.

    `mode` owns the fake tensors that its nodes carry.
    """

    graph: GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    mode: FakeTensorMode


def trace(step: Step, example: Mapping[str, Tensor], *, batched: Collection[str], module: nn.Module) -> Traced:
    """Run `step` once on fake tensors and write down the ATen operators it calls.

    Raises LoweringError where the model's path depends on values or on the batch size.
    """
    names = tuple(example)
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    fakes = _fake_inputs(mode, example, batched)
    results: list[str] = []

    def flat(*values: Tensor) -> tuple[Tensor, ...]:
        with without_recomputation(), traced_loops(), _Places(module, flat.__code__), Portable(module):
            named = step(dict(zip(names, values, strict=True)))
        results[:] = named
        return tuple(named.values())

    try:
        with quiet(), _portable_kernels(), mode:
            graph = make_fx(
                flat, decomposition_table=backward_table(), tracing_mode="real", _allow_non_fake_inputs=True
            )(*fakes)
    except LoweringError:
        raise
    except Exception as error:
        line = failing_line(error.__traceback__, flat.__code__)
        if isinstance(error, UnsupportedOperatorException):
            raise refusal(str(error.func), Place(line=line)) from error
        raise LoweringError(
            f"the model cannot be traced{line and f' beyond {line}'}: {said(error)}",
            hint="its path may not depend on the values of tensors (if x.sum() > 0, .item(), .tolist(), boolean masks)",
        ) from error
    _check_batch(shapes)
    graph.graph.eliminate_dead_code()
    return Traced(graph, names, tuple(results), mode)


def place_of(node: Node) -> Place:
    """Where in the model a node came from; for an operator of the backward pass, its forward operator's place."""
    noted = node.meta.get("custom") or {}
    return Place(noted.get("module", ""), noted.get("line", ""))


def _fake_inputs(mode: FakeTensorMode, example: Mapping[str, Tensor], batched: Collection[str]) -> list[Tensor]:
    """Fake tensors like `example`; all batched ones share one symbol for their first dimension."""
    fakes: list[Tensor] = []
    batch: int | torch.SymInt | None = None
    for name, value in example.items():
        if name not in batched:
            fakes.append(mode.from_tensor(value.detach(), static_shapes=True))
        elif batch is None:
            row = torch.empty((TRACED_BATCH, *value.shape[1:]), dtype=value.dtype)
            sizes = [DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * (value.dim() - 1)
            context: Any = StatelessSymbolicContext(dynamic_sizes=sizes, constraint_sizes=[None] * value.dim())
            fake = mode.from_tensor(row, source=ConstantSource(name), symbolic_context=context)
            batch = fake.shape[0]
            fakes.append(fake)
        else:
            with mode:
                fakes.append(torch.empty((batch, *value.shape[1:]), dtype=value.dtype))
    return fakes


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep PyTorch's chatter about its own internals from the person who exports."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _portable_kernels() -> Iterator[None]:
    """Plain ATen operators: no oneDNN (fused LSTM), no NNPACK (a guard on batch < 16), attention as matmul, softmax."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.backends.nnpack.flags(enabled=False))
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(fx_traceback.preserve_node_meta())
        # Composite operators in their Python form, which accepts a symbol as batch size (GRU, Upsample, padding).
        stack.enter_context(enable_python_dispatcher())
        yield


class _Places(TorchDispatchMode):
    """While the block runs, every traced operator notes the module and the line of the model that called it.

    An operator of the backward pass takes the note of the forward operator with the same autograd number.
    """

    def __init__(self, module: nn.Module, outermost: CodeType) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._module = module
        self._outermost = outermost
        self._open: list[str] = []
        self._noted: dict[int, dict[str, str]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> _Places:
        for path, child in self._module.named_modules():
            self._handles.append(child.register_forward_pre_hook(self._enter(path), prepend=True))
            self._handles.append(child.register_forward_hook(self._leave, always_call=True))
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        backward = backward_number()
        if backward is not None:
            note = self._noted.get(backward, {})
        else:
            note = {
                "module": self._open[-1] if self._open else "",
                "line": calling_line(sys._getframe(1), self._outermost),
            }
            self._noted.setdefault(forward_number(), note)
        with fx_traceback.annotate(note):
            return func(*args, **(kwargs or {}))

    def _enter(self, path: str) -> Callable[[nn.Module, object], None]:
        def hook(_module: nn.Module, _args: object) -> None:
            self._open.append(path)

        return hook

    def _leave(self, _module: nn.Module, _args: object, _result: object) -> None:
        self._open.pop()


def _check_batch(shapes: ShapeEnv) -> None:
    """Raise LoweringError when a condition met while tracing holds for some batch sizes only."""
    symbols = list(shapes.backed_var_to_val)
    if shapes.replacements:
        fixed = ", ".join(str(value) for value in shapes.replacements.values())
        raise LoweringError(
            f"the model only works for a batch size of {fixed}",
            hint="use x.shape[0] or -1 instead of a number where the batch dimension is meant (view, reshape, expand)",
        )
    for guard in shapes.guards:
        for size in TRIED_BATCHES:
            if guard.expr.subs(dict.fromkeys(symbols, size)) == False:  # noqa: E712  (a sympy value, not a bool)
                raise LoweringError(
                    f"the model's path depends on the batch size: {guard.expr} was taken as true, "
                    f"which a batch of {size} is not",
                    hint="remove the condition on x.shape[0]; a last batch may be short",
                )
