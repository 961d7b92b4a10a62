"""The code that makes a bundle: edgefl's own files, a person's own, and the versions of everything else."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

import edgefl
import edgefl_exporter
from edgefl.files import read_bytes, sha256_hex
from edgefl_exporter.cache.content import Unnameable, content

OURS = (Path(edgefl.__file__).parent, Path(edgefl_exporter.__file__).parent)
BESIDE = ("edgefl_device", "edgefl_broker")  # ours as well; nothing of them goes into a bundle
SIMPLE = (bool, int, float, str, bytes, type(None))


def versions() -> str:
    """A hash of what is installed, of edgefl's own files, and of the processor's kind: other instructions round
    otherwise."""
    installed = sorted({f"{one.name}=={one.version}" for one in importlib.metadata.distributions()})
    own = [sha256_hex(path.read_bytes()) for folder in OURS for path in sorted(folder.rglob("*.py"))]
    machine = (platform.system(), platform.machine(), torch.backends.cpu.get_cpu_capability())
    return content(sys.version, torch.__version__, machine, installed, own)


def own_code() -> str:
    """A hash of every Python file that is imported and is neither installed nor ours, and of the numbers and texts that
    it holds. Raises Unnameable for one that is not there any more."""
    found = []
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(module, ModuleType) and path and _is_own(module.__name__, path):
            if not os.path.isfile(path):
                raise Unnameable(f"the module {module.__name__}")
            values = {key: value for key, value in vars(module).items() if _is_simple(value)}
            values = {key: value for key, value in values.items() if not key.startswith("__")}
            found.append((sha256_hex(read_bytes(Path(path))), content(values)))
    return content(*sorted(found))


def _is_own(name: str, path: str) -> bool:
    named = os.path.isabs(path)  # torch.ops has a name of no file
    return named and name.partition(".")[0] not in BESIDE and not path.startswith(_installed())


def _is_simple(value: object) -> bool:
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_simple, value))
    if isinstance(value, dict):
        return all(map(_is_simple, value.keys())) and all(map(_is_simple, value.values()))
    return isinstance(value, (*SIMPLE, torch.Tensor))


@functools.cache
def _installed() -> tuple[str, ...]:
    return tuple(sorted({form + os.sep for folder in _folders() for form in (folder, os.path.realpath(folder))}))


def _folders() -> Iterator[str]:
    paths = sysconfig.get_paths()
    yield from (paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    yield from (*map(str, OURS), site.getusersitepackages())
