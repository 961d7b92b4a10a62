"""The hash of a value by what is in it: a model with its weights, a recipe, and whatever else plain Python holds.

Functions and classes stand for themselves by their names; the source that they are in is `sources.py`'s affair.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import sys
import types
import weakref
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor


class Unnameable(Exception):
    """A value of which nobody can say what it is: a file that is open, a generator of random numbers, a class that a
    function has made."""


def content(*values: object) -> str:
    """A SHA-256 that differs where anything in the values differs. Raises Unnameable."""
    writer = _Writer()
    writer.add(values)
    return writer.hash.hexdigest()


NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
PLAIN = (bool, int, float, complex, str, bytes, PurePath, torch.dtype, torch.device, torch.layout, np.dtype, slice)


class _Writer:
    """Values go in one after the other, each with its kind and its length, so that no two of them run together."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._seen: dict[int, tuple[int, object]] = {}  # the object too, so that its id stays its own

    def add(self, value: object) -> None:
        if value is None or (isinstance(value, PLAIN) and not isinstance(value, enum.Enum)):
            self._put(type(value).__qualname__, value if isinstance(value, bytes) else repr(value).encode())
            return
        if id(value) in self._seen:
            self._put("again", str(self._seen[id(value)][0]).encode())
            return
        self._seen[id(value)] = (len(self._seen), value)
        if isinstance(value, NAMED):
            self._named(value)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            if value.dtype.hasobject:
                raise Unnameable(f"an array of {value.dtype}")
            self._put(f"array {value.dtype.str} {value.shape}", value.tobytes())
        elif isinstance(value, enum.Enum):
            self._of(value, value.name)
        elif isinstance(value, functools.partial):
            self._of(value, value.func, value.args, value.keywords)
        elif isinstance(value, types.MethodType):
            self._of(value, value.__func__, value.__self__)
        elif isinstance(value, types.ModuleType):
            self._put("module", value.__name__.encode())
        elif isinstance(value, weakref.ref):  # an LSTM's, to its own weights
            self._of(value, value())
        elif isinstance(value, (set, frozenset)):
            self._of(value, *sorted(content(one) for one in value))
        else:
            self._parts(value)

    def _parts(self, value: object) -> None:
        """A container, or an object by its attributes."""
        parts: list[object] = []
        if isinstance(value, Mapping):
            parts += [part for item in value.items() for part in item]
        elif isinstance(value, (list, tuple)):
            parts += value
        elif isinstance(value, msgspec.Struct):
            parts += [getattr(value, name) for name in value.__struct_fields__]
        elif not hasattr(value, "__dict__") or type(value).__reduce__ is not object.__reduce__:
            raise Unnameable(f"a {type(value).__qualname__}")
        if own := getattr(value, "__dict__", None):
            parts.append(dict(own))
        self._of(value, *parts)

    def _of(self, value: object, *parts: object) -> None:
        self.add(type(value))
        self._put("parts", str(len(parts)).encode())
        for part in parts:
            self.add(part)

    def _named(self, value: Any) -> None:
        """A class or a function: its name, and what a function was made with."""
        module = sys.modules.get(getattr(value, "__module__", None) or "builtins")
        from_a_file = getattr(module, "__file__", None) or getattr(module, "__name__", "") in sys.builtin_module_names
        if not from_a_file or (isinstance(value, type) and "<locals>" in value.__qualname__):
            raise Unnameable(f"{value.__qualname__}, which is in no file by its name")
        self._put("named", f"{getattr(value, '__module__', '')}:{value.__qualname__}".encode())
        if isinstance(value, types.FunctionType):
            code = value.__code__  # lambdas of one file share a name
            self._put("code", f"{code.co_firstlineno} ".encode() + code.co_code)
            held = [cell.cell_contents for cell in value.__closure__ or ()]
            for part in (code.co_consts, value.__defaults__, value.__kwdefaults__, held, value.__dict__):
                self._consts(part) if part is code.co_consts else self.add(part)

    def _consts(self, consts: tuple[object, ...]) -> None:
        for one in consts:
            if isinstance(one, types.CodeType):
                self._put("code", one.co_code)
                self._consts(one.co_consts)
            else:
                self.add(one)

    def _tensor(self, value: Tensor) -> None:
        plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided
        if not plain or value.device.type != "cpu":
            raise Unnameable(f"a {type(value).__qualname__} on {value.device}")
        self.add(type(value))
        about = f"{value.dtype} {tuple(value.shape)} {value.stride()} {value.requires_grad}"
        self._put("tensor", about.encode())
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
        self._put("bytes", flat.numpy().data)

    def _put(self, kind: str, data: bytes | memoryview) -> None:
        self.hash.update(f"{kind} {memoryview(data).nbytes}:".encode())
        self.hash.update(data)
