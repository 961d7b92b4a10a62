"""A model named on the command line: "FILE:OBJECT" in somebody's Python file, or "zoo:NAME"."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgefl.errors import InputError
from edgefl_exporter.zoo import ZOO


def load_model(source: str, input_shape: Sequence[int] | None = None, *, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The module and an example input [batch, ...]. `seed` makes the initial weights.

    OBJECT is a module, a function or class that gives one (then `input_shape`, without the batch dimension, is
    needed), or a function that gives (module, example_input). Raises InputError in one clear line.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = _make(source)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module) and isinstance(made[1], Tensor):
        module, example = made
        if input_shape is not None:
            example = torch.zeros(1, *input_shape, dtype=example.dtype)
    elif isinstance(made, nn.Module):
        if input_shape is None:
            raise InputError(
                f"{source} gives a model without an example input",
                hint="say the shape of one example, such as --input 1x28x28",
            )
        module, example = made, torch.zeros(1, *input_shape)
    else:
        raise InputError(
            f"{source} gives {_describe(made)}; expected a torch.nn.Module, or (module, example_input)",
            hint="write a function that returns the model",
        )
    _try(source, module, example)
    return module, example


def _make(source: str) -> object:
    """What the named object gives."""
    file, _, name = source.rpartition(":")
    if not file or not name:
        raise InputError(f"{source!r} is not FILE:OBJECT or zoo:NAME", hint="for example examples/digits.py:model")
    if file == "zoo":
        if name not in ZOO:
            raise InputError(f"no model {name!r} in the zoo", hint=_nearest(name, ZOO))
        return ZOO[name]()
    found = getattr(_import(Path(file)), name, None)
    if found is None:
        names = [key for key in vars(_import(Path(file))) if not key.startswith("_")]
        raise InputError(f"no {name!r} in {file}", hint=_nearest(name, names))
    if isinstance(found, nn.Module) or not callable(found):
        return found
    try:
        return found()
    except Exception as error:
        raise InputError(
            f"{source}() failed: {_line(error)}", hint="the function or class is called without arguments"
        ) from error


def _import(path: Path) -> object:
    """The Python file as a module; its folder is importable while and after it runs, as with `python FILE`."""
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise InputError(f"no file {path}", hint=_nearest(path.name, near))
    key = f"_edgefl_model_{path.resolve()}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise InputError(f"{path} cannot be imported: {_line(error)}") from error
    return module


def _try(source: str, module: nn.Module, example: Tensor) -> None:
    """One forward pass of two examples, in evaluation mode; the module's training flags are put back."""
    flags = {child: child.training for child in module.modules()}
    try:
        with torch.no_grad():
            module.eval()(torch.cat([example] * 2))
    except Exception as error:
        raise InputError(
            f"{source} fails on an input of shape [batch, {', '.join(map(str, example.shape[1:]))}]: {_line(error)}",
            hint="give the shape of one example with --input, without the batch dimension",
        ) from error
    finally:
        for child, training in flags.items():
            child.training = training


def _nearest(name: str, names: Iterable[str]) -> str | None:
    known = list(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there is: {', '.join(known[:12])}" if known else None


def _describe(value: object) -> str:
    return f"a class {value.__name__}" if isinstance(value, type) else f"{type(value).__name__}"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
