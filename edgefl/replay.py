"""Proving a bundle again, anywhere: its golden inputs through onnxruntime, against the outputs PyTorch gave.

Needs neither torch nor the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from edgefl.bundle import Bundle
from edgefl.errors import BundleError, ParityError
from edgefl.manifest import PORTABLE, Program
from edgefl.onnx_session import make_session
from edgefl.tensors import Array
from edgefl.training_artifacts import ENGINE, FILES, Artifacts, ProgramOf

# Below this norm an error is measured absolutely (against this), not relatively: a gradient that is zero in theory
# (a bias before BatchNorm) is rounding noise, and the noise of two correct programs differs.
SMALL = 1e-2
# A state tensor's error is measured against how far it moved, but at least this part of the tensor: closer than that,
# the float32 rounding of the sum itself would be counted (6e-8 of the tensor is 6e-6 of a hundredth of it).
MOVED = 1e-2


def replay(
    bundle: Bundle, engine: str = PORTABLE, *, progress: Callable[[str], None] = lambda line: None
) -> dict[str, float]:
    """Run the golden inputs of every program that the engine runs: program -> worst relative error over its outputs.

    Raises ParityError when an error is over the manifest's tolerance, ImportError where the engine is not installed.
    """
    manifest = bundle.manifest
    if engine == PORTABLE:
        proofs = {name: program.parity for name, program in manifest.programs.items()}
    else:
        proofs = manifest.target(engine).parity
    runner_of = _runners(bundle, engine)
    weights = bundle.weights()
    worst: dict[str, float] = {}
    for number, (name, parity) in enumerate(proofs.items(), 1):
        progress(f"{name} ({number} of {len(proofs)}, {engine})")
        golden = bundle.golden(name)
        want = {key.removeprefix("out."): value for key, value in golden.items() if key.startswith("out.")}
        values = golden_values(weights, golden)
        errors = compare(manifest.program(name), values, runner_of(name).run(values), want)
        worst[name] = max(errors.values(), default=0.0)
        require(errors, parity.tolerance, program=name, check="golden")
    return worst


def _runners(bundle: Bundle, engine: str) -> Callable[[str], Runs]:
    """Program name -> what runs it."""
    programs = bundle.manifest.programs
    if engine == PORTABLE:
        return lambda name: Runner(bundle.program_bytes(name))
    if engine != ENGINE:
        raise ImportError(f"this edgefl has no engine {engine!r}")
    artifacts = Artifacts(bundle.target_folder(engine, FILES))
    return lambda name: ProgramOf(name, programs, artifacts.run, artifacts.runtime)


def golden_values(weights: Mapping[str, Array], golden: Mapping[str, Array]) -> dict[str, Array]:
    """What a golden file's program is given: its inputs, and the weights; a scalar "in.NAME" fills a state tensor."""
    values = dict(weights)
    for key, value in golden.items():
        name = key.removeprefix("in.")
        if key.startswith("in."):
            values[name] = np.full_like(weights[name], value) if name in weights else value
    return values


class Runs(Protocol):
    """One program in some runtime, as a pure function: for proofs."""

    @property
    def runtime(self) -> str:
        """Name and version."""
        ...

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs and state -> all outputs. `values` may hold more than the program reads."""
        ...


def replay_all(
    bundle: Bundle, *, progress: Callable[[str], None] = lambda line: None
) -> tuple[dict[str, float], dict[str, dict[str, float] | None]]:
    """`replay` for the stock runtime, and for each other engine that the bundle has files for: None where that one is
    not installed here."""
    targets: dict[str, dict[str, float] | None] = {}
    for engine in bundle.manifest.targets:
        try:
            targets[engine] = replay(bundle, engine, progress=progress)
        except ImportError:  # needs an environment of its own
            targets[engine] = None
    return replay(bundle, progress=progress), targets


class Runner:
    """One program in onnxruntime: named arrays in, named arrays out. For proofs; a device keeps state in place."""

    def __init__(self, data: bytes, threads: int = 1) -> None:
        import onnxruntime

        try:
            self._session: Any = make_session(data, threads=threads)
        except Exception as error:  # onnxruntime's errors share no base class
            raise BundleError(f"onnxruntime {onnxruntime.__version__} cannot load the program: {error}") from error
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self.inputs: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs. `values` may hold more than the program reads."""
        results = self._session.run(None, {name: values[name] for name in self.inputs})
        return dict(zip(self.outputs, results, strict=True))


def compare(
    program: Program,
    values: Mapping[str, Array],
    got: Mapping[str, Array],
    want: Mapping[str, Array],
) -> dict[str, float]:
    """Output -> its error. Outputs that are a state tensor's next value are measured by how far it moved."""
    before = {output: values[name] for name, output in program.writes.items() if name in values}
    return {name: relative_error(got[name], wanted, before.get(name)) for name, wanted in want.items()}


def relative_error(got: Array, want: Array, before: Array | None = None) -> float:
    """|got - want| / |want|, norms of whole tensors; with `before`, |got - want| / |want - before|.

    Infinite when shapes differ, or when one has an infinity or a NaN where the other has not the same; the norms are of
    the finite places. Small norms: see SMALL and MOVED.
    """
    if got.shape != want.shape:
        return float("inf")
    a, b = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    size = _norm(b[finite])
    if before is not None:
        start = before.astype(np.float64)[finite]
        moved = _norm(b[finite] - np.where(np.isfinite(start), start, 0.0))
        size = max(moved, MOVED * size)
    return _norm(a[finite] - b[finite]) / max(size, SMALL)


def _norm(x: Array) -> float:
    """Without numpy's own, whose sum depends on how many threads its BLAS has."""
    return float(np.sqrt(np.square(x).sum()))


def require(errors: Mapping[str, float], tolerance: float, *, program: str, check: str) -> None:
    """Raise ParityError for the worst tensor over the tolerance."""
    if not errors:
        return
    tensor = max(errors, key=lambda name: errors[name])
    if not errors[tensor] <= tolerance:
        raise ParityError(
            f"program {program!r}, check {check!r}: {tensor!r} differs from PyTorch by {errors[tensor]:.3g} "
            f"(relative), over the tolerance of {tolerance:.3g}",
            hint="this program would train wrongly; please report the model",
        )
