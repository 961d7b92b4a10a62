"""What carries out programs on a device: the one place that chooses."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Protocol

from edgefl.bundle import Bundle
from edgefl.errors import InputError
from edgefl.manifest import PORTABLE, Manifest
from edgefl.tensors import Array
from edgefl.training_artifacts import INSTALL, training_api
from edgefl_device.work.stopping import Stop

_versions = itertools.count(1)


def next_version() -> int:
    """A number that is greater than any before it in this process: no two engines ever have a version in common."""
    return next(_versions)


class Engine(Protocol):
    """A bundle's programs and the state they work on; `runtime.Runtime` says what each does."""

    bundle: Bundle
    manifest: Manifest
    version: int  # of the state: another as soon as that changes, from `next_version`

    def state(self, names: Iterable[str] | None = None) -> dict[str, Array]: ...

    def view(self, name: str) -> Array: ...

    def load(self, tensors: Mapping[str, Array]) -> None: ...

    def reset(self, names: Iterable[str]) -> None: ...

    def step(self, program: str, inputs: Mapping[str, Array], stop: Stop | None = None) -> dict[str, Array]: ...


def start(engine: str, bundle: Bundle, *, threads: int = 1) -> Engine:
    """The named engine with a bundle; see `name_of` for what it needs."""
    if engine == PORTABLE:
        from edgefl_device.engines.runtime import Runtime

        return Runtime(bundle, threads=threads)
    from edgefl_device.engines.training_runtime import TrainingRuntime

    return TrainingRuntime(bundle, threads=threads)


def name_of(engine: str) -> str:
    """Which library an engine runs on here, with its version. Raises InputError where this environment lacks it.

    onnxruntime is looked for and not imported, which takes 15 MB: a device may wait long for its first bundle.
    """
    try:
        if engine != PORTABLE:
            training_api()
            import onnxruntime

            return f"{engine} {onnxruntime.__version__}"
        if find_spec("onnxruntime") is None:
            raise ImportError("No module named 'onnxruntime'")
    except ImportError as error:
        hint = "pip install 'edgefl[device]'" if engine == PORTABLE else INSTALL
        raise InputError(f"the engine {engine} cannot be used here: {error}", hint=hint) from error
    return f"onnxruntime {_installed_version()}".rstrip()


def _installed_version() -> str:
    """Of onnxruntime, whichever of its distributions brought it; "" where its files say nothing."""
    for name in ("onnxruntime", "onnxruntime-training-cpu", "onnxruntime-gpu"):
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return ""
