"""A model or a loss named on the command line: "FILE:OBJECT" in somebody's Python file, or "zoo:NAME"."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from edgefl import own_code
from edgefl.errors import InputError, nearest, said
from edgefl_exporter.catalogue import check_there
from edgefl_exporter.programs.losses import LOSSES, Loss, OwnLoss
from edgefl_exporter.zoo import ZOO


class Loaded(NamedTuple):
    """A module, an example input [batch, ...], where somebody gives them example labels [batch, ...], the name of the
    loss that it is made for, and the range of values that it is made for, where that is known."""

    module: nn.Module
    example: Tensor
    labels: Tensor | None = None
    loss: str = "cross_entropy"
    range: tuple[float, float] | None = None


def load_model(
    source: str, input_shape: Sequence[int] | None = None, *, seed: int = 0, features: int | None = None
) -> Loaded:
    """The module and an example of its input. `seed` makes the initial weights. With `features`, how many a model has
    before its last layer: OBJECT is a function or a model of the zoo that takes it.

    OBJECT is a module, a function or class that gives one (then `input_shape`, without the batch dimension, is
    needed), or a function that gives (module, example_input) or (module, example_input, example_labels). Raises
    InputError in one clear line.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = _make(source, {} if features is None else {"features": features})
    if isinstance(made, nn.Module):
        if input_shape is None:
            raise InputError(
                f"{source} gives a model without an example input",
                hint="say the shape of one example, such as --input 1x28x28",
            )
        loaded = Loaded(made, torch.zeros(1, *input_shape))
    elif _is_loaded(made):
        loaded = made if isinstance(made, Loaded) else Loaded(*made)
        if input_shape is not None:
            loaded = loaded._replace(example=torch.zeros(1, *input_shape, dtype=loaded.example.dtype))
    else:
        raise InputError(
            f"{source} gives {_describe(made)}; expected a torch.nn.Module, or (module, example_input)",
            hint="write a function that returns the model",
        )
    _try(source, loaded.module, loaded.example)
    return loaded


def load_loss(source: str, labels: Tensor | None) -> Loss:
    """The loss called `source`: a name of LOSSES, or FILE:FUNCTION, which needs example `labels` [batch, ...].

    Raises InputError in one clear line.
    """
    if source in LOSSES:
        return LOSSES[source]
    file, _, name = source.rpartition(":")
    if not file or not name:
        raise InputError(
            f"unknown loss {source!r}",
            hint=nearest(source, LOSSES),
        )
    function = own_code.load(Path(file), name)
    if not callable(function):
        raise InputError(
            f"{source} is {_describe(function)}; expected a function", hint="def loss(output, labels): ..."
        )
    if labels is None:
        raise InputError(
            f"the loss {source} needs to know what labels look like",
            hint="let the model's function return (module, example_input, example_labels)",
        )
    return OwnLoss(function, labels)


def _is_loaded(made: object) -> TypeGuard[tuple[nn.Module, Tensor]]:
    return isinstance(made, Loaded) or (
        isinstance(made, tuple)
        and len(made) in (2, 3)
        and isinstance(made[0], nn.Module)
        and all(isinstance(part, Tensor) for part in made[1:])
    )


def _make(source: str, arguments: dict[str, Any]) -> object:
    """What the named object gives."""
    check_there(source)
    file, _, name = source.rpartition(":")
    if file == "zoo":
        _check_arguments(source, ZOO[name].make, arguments)
        module, example = ZOO[name].make(**arguments)
        return Loaded(module, example, loss=ZOO[name].loss, range=ZOO[name].range)
    found = own_code.load(Path(file), name)
    _check_arguments(source, found, arguments)
    if isinstance(found, nn.Module) or not callable(found):
        return found
    try:
        return found(**arguments)
    except Exception as error:
        raise InputError(
            f"{source}() failed: {said(error)}", hint="the function or class is called without arguments"
        ) from error


def _check_arguments(source: str, make: object, arguments: dict[str, Any]) -> None:
    """Raises InputError unless `make` takes them by name."""
    takes = inspect.signature(make).parameters if callable(make) else {}
    for name, value in arguments.items():
        if name not in takes:
            raise InputError(
                f"{source} cannot be made with {value} {name}: it does not take {name!r}",
                hint=f"write a function with the parameter {name}: how many the model has before its last layer",
            )


def _try(source: str, module: nn.Module, example: Tensor) -> None:
    """One forward pass of two examples, in evaluation mode; the module's training flags are put back."""
    flags = {child: child.training for child in module.modules()}
    try:
        with torch.no_grad():
            module.eval()(torch.cat([example] * 2))
    except Exception as error:
        raise InputError(
            f"{source} fails on an input of shape [batch, {', '.join(map(str, example.shape[1:]))}]: {said(error)}",
            hint="give the shape of one example with --input, without the batch dimension",
        ) from error
    finally:
        for child, training in flags.items():
            child.training = training


def _describe(value: object) -> str:
    return f"a class {value.__name__}" if isinstance(value, type) else f"{type(value).__name__}"
