"""The manifest of a bundle: what is in it, and what its programs take, give, read and write. Types, and their checks.

Nothing here needs torch or onnx.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal

import msgspec
import numpy as np

from edgefl.data_contract import DataContract, Dtype, check_data
from edgefl.errors import BundleError

MANIFEST = "manifest.json"
FORMAT = 2  # of the manifest; a reader refuses any other
PORTABLE = "portable"  # the engine that runs the programs themselves
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_FILE_BYTES = 2**31  # edgefl/protocol.py: MAX_BLOB_BYTES
MAX_PATH = 200  # characters of a file's path inside a bundle: the state folder comes before it, and systems allow 260
MAX_DEPTH = 4  # names in such a path
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.+-]*(?<!\.)")  # of a path; on every system a name, and visible
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # devices of Windows
_SHA256 = re.compile(r"[0-9a-f]{64}")


class _Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class File(_Frozen, frozen=True):
    """One file of a bundle, by its path inside the bundle and its content."""

    path: str
    sha256: str
    size_bytes: int


class StateTensor(_Frozen, frozen=True):
    """A named tensor that lives on a device between programs.

    `fuse` is the rule for federation: "mean" travels and is averaged, "local" never leaves the device.
    By default parameters that train and floating-point buffers that training changes are "mean"; frozen parameters,
    constant buffers, integer buffers (BatchNorm's num_batches_tracked) and the optimizer's tensors are "local".

    `group` is the fusion group: what a shared tensor is called on its way and on the aggregator, by default its own
    name. So bundles of different architecture fuse what they have in common, under one name.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    role: Literal["parameter", "buffer", "optimizer"]
    fuse: Literal["mean", "local"] = "mean"
    group: str = ""

    @property
    def public_name(self) -> str:
        """What asks and replies call it."""
        return self.group or self.name

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Input(_Frozen, frozen=True):
    """A program's input that is not state. A string in `shape` is a dimension known at run time ("batch").

    `source`: "features" and "labels" come from the task's feed; "present" is 1 for each example of the batch and 0 for
    each row that only fills it up, where the batch size is fixed; "seed" is a whole number that the device makes of the
    task's seed and its own name; "setting" is a scalar from the task's settings, else `default`.

    `feature`: which of the contract's features it takes; "" where the contract has one.
    """

    name: str
    dtype: Dtype
    shape: tuple[int | str, ...]
    source: Literal["features", "labels", "present", "seed", "setting"]
    default: float | None = None
    feature: str = ""

    @property
    def is_batched(self) -> bool:
        """Whether it has a row for each example."""
        return self.source in ("features", "labels", "present")


class Output(_Frozen, frozen=True):
    """A program's output that is not state.

    `over_batches`: how a task reports it over its batches. "mean" is weighted by the examples of each
    batch, "sum" adds, "last" keeps the newest, "concat" stacks along the batch dimension.
    """

    name: str
    dtype: Dtype
    shape: tuple[int | str, ...]
    over_batches: Literal["mean", "sum", "last", "concat"]

    @property
    def is_metric(self) -> bool:
        """Whether it is one number per batch, which a reply reports as a metric."""
        return self.over_batches != "concat" and all(n == 1 for n in self.shape)


class Parity(_Frozen, frozen=True):
    """How far a program in the target runtime was from PyTorch: |program - torch| / |torch| of whole tensors."""

    runtime: str
    tolerance: float
    checks: dict[str, float]  # check name -> worst relative error over its outputs
    looser: dict[str, float] = {}  # check name -> its own tolerance, where that is above `tolerance`

    @property
    def worst(self) -> float | None:
        """Of the checks held to `tolerance`; None without one."""
        return max((error for check, error in self.checks.items() if check not in self.looser), default=None)


class Memory(_Frozen, frozen=True):
    """What a step of a program makes a process grow by, which was exported to a budget.

    Growth is the most resident memory of some first steps less what the process had before them, with the program, the
    state and the batch loaded. `settings` are the runtime's, for people.
    """

    budget_bytes: int
    batch: int
    grown_bytes: int
    plain_bytes: int  # of the program that keeps everything
    runtime: str
    settings: str


class Program(_Frozen, frozen=True):
    """One ONNX graph, `state + inputs -> state + outputs`.

    `reads`: state tensors, each a graph input of the same name. `writes`: state tensor -> the graph output
    that holds its next value. `memory`: where it was made to a budget; a device then gives its session a tight arena.
    """

    file: File
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    reads: tuple[str, ...]
    writes: dict[str, str]
    parity: Parity
    golden: File
    memory: Memory | None = None

    @property
    def fixed_batch(self) -> int | None:
        """The one batch size that it takes, a smaller batch being filled up; None where it takes any."""
        sizes = [i.shape[0] for i in self.inputs if i.source == "features" and i.shape]
        return sizes[0] if sizes and isinstance(sizes[0], int) else None

    def settings(self) -> dict[str, float]:
        """Scalar run-time inputs with their defaults."""
        return {i.name: i.default for i in self.inputs if i.source == "setting" and i.default is not None}


class Target(_Frozen, frozen=True):
    """Files of another runtime for the same state; `parity` names the programs that a device runs from them."""

    files: tuple[File, ...]
    parity: dict[str, Parity]


class Manifest(_Frozen, frozen=True):
    """Everything a device or an aggregator must know about a bundle."""

    format: int
    name: str
    method: str
    made_by: str  # e.g. "edgefl 0.1.0, torch 2.13.0, onnxruntime 1.31.1"
    data: DataContract
    state: tuple[StateTensor, ...]
    programs: dict[str, Program]
    weights: File
    targets: dict[str, Target] = {}  # by engine

    def files(self, *, engine: str | None = None) -> tuple[File, ...]:
        """Every file of the bundle except the manifest itself; with `engine`, what a device needs that has this one.

        Raises BundleError when there is nothing for the engine.
        """
        programs = self.programs
        if engine is None:
            targets = (file for target in self.targets.values() for file in target.files)
            return (
                self.weights,
                *(p.file for p in programs.values()),
                *(p.golden for p in programs.values()),
                *targets,
            )
        if engine == PORTABLE:
            return (self.weights, *(p.file for p in programs.values()))
        target = self.target(engine)
        rest = (program.file for name, program in programs.items() if name not in target.parity)
        return (self.weights, *target.files, *rest)

    def target(self, engine: str) -> Target:
        """The files for an engine that is not the portable one; BundleError when there are none."""
        if engine not in self.targets:
            raise BundleError(
                f"bundle {self.name!r} has no files for {engine}",
                hint=f"export it with --target {engine}, or start the device without --engine",
            )
        return self.targets[engine]

    def tensor(self, name: str) -> StateTensor:
        """The state tensor called `name`; BundleError when there is none."""
        for tensor in self.state:
            if tensor.name == name:
                return tensor
        raise BundleError(f"bundle {self.name!r} has no state tensor {name!r}")

    def program(self, name: str) -> Program:
        """The program called `name`; BundleError when there is none."""
        if name not in self.programs:
            raise BundleError(f"bundle {self.name!r} has no program {name!r}; it has {', '.join(self.programs)}")
        return self.programs[name]

    def shared(self) -> tuple[StateTensor, ...]:
        """The state tensors that travel between device and aggregator."""
        return tuple(t for t in self.state if t.fuse == "mean")

    def fusion_map(self) -> dict[str, StateTensor]:
        """Fusion group -> the state tensor that travels under its name."""
        return {t.public_name: t for t in self.shared()}


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Typed manifest from JSON bytes. Raises BundleError with the path of the wrong field."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{where}: {len(data)} bytes; a manifest has at most {MAX_MANIFEST_BYTES}")

    class _Format(msgspec.Struct):
        format: int

    try:
        version = msgspec.json.decode(data, type=_Format).format
        if version < 1:
            raise BundleError(f"{where}: bundle format {version}; formats are numbered from 1")
        if version != FORMAT:
            raise BundleError(
                f"{where}: bundle format {version}; this edgefl reads {FORMAT}",
                hint="upgrade edgefl" if version > FORMAT else "export it again with this edgefl",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where}: {error}") from error
    check_manifest(manifest, where)
    return manifest


def select(names: Iterable[str], globs: Iterable[str]) -> list[str]:
    """The names that match any of the shell-style patterns, in their own order. A name always matches itself."""
    patterns = tuple(globs)
    return [name for name in names if any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)]


def _check_files(files: Iterable[File], where: str) -> None:
    """Raise BundleError unless every file has a path that is one of its own on every system, and a possible size."""
    taken: dict[str, File | None] = {MANIFEST: None}  # path as a system sees it that ignores case -> who has it
    folders: set[str] = set()
    for file in files:
        parts = file.path.split("/")
        small = len(file.path) <= MAX_PATH and len(parts) <= MAX_DEPTH
        if not small or not all(_PART.fullmatch(part) and not _RESERVED.fullmatch(part) for part in parts):
            raise BundleError(
                f"{where}: unsafe path {file.path[:MAX_PATH]!r}",
                hint=f"a path has up to {MAX_DEPTH} names of A-Z, a-z, 0-9 and _-.+, and {MAX_PATH} characters",
            )
        if not _SHA256.fullmatch(file.sha256) or not 0 <= file.size_bytes <= MAX_FILE_BYTES:
            raise BundleError(
                f"{where}: {file.path!r} has {file.size_bytes} bytes and SHA-256 {file.sha256[:64]!r}; "
                f"expected at most {MAX_FILE_BYTES}, and 64 hexadecimal digits"
            )
        if taken.setdefault(file.path.lower(), file) != file:
            raise BundleError(f"{where}: unsafe path {file.path!r}: another file has it, or one that differs in case")
        folders |= {"/".join(parts[:i]).lower() for i in range(1, len(parts))}
    if clash := sorted(folders & taken.keys()):
        raise BundleError(f"{where}: unsafe path {clash[0]!r}: one file's path is another's folder")


def check_manifest(manifest: Manifest, where: str) -> None:
    """What the types cannot say: safe paths, names that exist, data that can be."""
    _check_files(manifest.files(), where)
    check_data(manifest.data, where)
    names = [t.name for t in manifest.state]
    if len(set(names)) != len(names):
        raise BundleError(f"{where}: two state tensors have one name")
    public = Counter(t.public_name for t in manifest.state)
    if twice := sorted(name for name, count in public.items() if count > 1):
        raise BundleError(f"{where}: two state tensors are in the fusion group {twice[0]!r}")
    known = set(names)
    for name, program in manifest.programs.items():
        for tensor in (*program.reads, *program.writes):
            if tensor not in known:
                raise BundleError(f"{where}: program {name!r} names unknown state tensor {tensor!r}")
        for entry in program.inputs:
            if entry.source == "features" and not manifest.data.has(entry.feature):
                raise BundleError(
                    f"{where}: program {name!r}, input {entry.name!r}: feature {entry.feature!r} is not one of "
                    f"{', '.join(feature.name for feature in manifest.data.features)}"
                )
    for engine, target in manifest.targets.items():
        if unknown := sorted(target.parity.keys() - manifest.programs.keys()):
            raise BundleError(f"{where}: target {engine!r} names unknown program {unknown[0]!r}")
