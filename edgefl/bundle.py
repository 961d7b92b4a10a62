"""A bundle: what the exporter writes and a device downloads. Read, verify, write.

    digits.bundle/
        manifest.json           what it says is in manifest.py; names every other file by its SHA-256
        weights.safetensors     the initial state
        programs/*.onnx         standard ONNX, weights are inputs
        onnxruntime-training/*  where the bundle has that target: its four files
        golden/*.safetensors    inputs ("in.*") and PyTorch's outputs ("out.*") of each program

The SHA-256 of manifest.json is the bundle's identity: it names the files, so it fixes every byte.
Nothing here needs torch or onnx.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np

from edgefl.errors import BundleError
from edgefl.files import directory_atomic, read_bytes, sha256_hex
from edgefl.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    PORTABLE,
    File,
    Manifest,
    Program,
    StateTensor,
    Target,
    check_manifest,
    parse_manifest,
)
from edgefl.tensors import Array, Tensors, load_tensors, save_tensors
from edgefl.trust.onnx_walk import ENGINES, check_graph, shown

WEIGHTS = "weights.safetensors"


class Bundle:
    """A verified bundle on disk. Make one with `read`."""

    def __init__(self, path: Path, manifest: Manifest, manifest_bytes: bytes) -> None:
        self.path = path
        self.manifest = manifest
        self.manifest_bytes = manifest_bytes
        self.sha256 = sha256_hex(manifest_bytes)
        self._walked: set[tuple[str, str]] = set()  # SHA-256 and engine of the graphs that may be given to a runtime

    @property
    def size_bytes(self) -> int:
        """The size of its files together."""
        return len(self.manifest_bytes) + sum(f.size_bytes for f in self.manifest.files())

    def weights(self) -> dict[str, Array]:
        """The initial state: name -> array."""
        return load_tensors(self.bytes_of(self.manifest.weights), self.path / WEIGHTS)

    def shared_weights(self) -> dict[str, Array]:
        """The initial values of what is shared: fusion group -> array."""
        weights = self.weights()
        return {group: weights[tensor.name] for group, tensor in self.manifest.fusion_map().items()}

    def golden(self, program: str) -> dict[str, Array]:
        """A program's golden inputs ("in.NAME") and outputs ("out.NAME")."""
        file = self.manifest.program(program).golden
        return load_tensors(self.bytes_of(file), self.path / file.path)

    def program_bytes(self, name: str) -> bytes:
        """A program as a runtime may be given it. Raises BundleError for one that is not standard ONNX alone.

        Nothing else of a bundle is made a session, and no path is: a runtime that reads again reads what it likes.
        """
        file = self.manifest.program(name).file
        return self._graph(file, PORTABLE, f"program {shown(name)} ({shown(file.path)})")

    def target_folder(self, engine: str, names: Iterable[str]) -> Path:
        """Where the files for another engine are, which loads the ones called `names` by their paths.

        Raises BundleError unless these are the files that the manifest has for the engine, unchanged, and each that is
        a graph may be given to it.
        """
        files = {file.path: file for file in self.manifest.target(engine).files}
        for name in names:
            path = f"{engine}/{name}"
            if path not in files:
                raise BundleError(f"bundle {self.manifest.name!r} has no {path} for {engine}", hint="export it again")
            self._target_file(files[path], engine)
        return self.path / engine

    def check_graphs(self, engine: str | None = None) -> None:
        """Raise BundleError unless every graph that this engine, by default any, runs may be given to it."""
        programs = set(self.manifest.programs)
        for other, target in self.manifest.targets.items():
            if engine == other:
                programs -= target.parity.keys()
            if engine in (None, other) and other in ENGINES:  # the files of an engine that we do not know are never run
                for file in target.files:
                    self._target_file(file, other)
        for name in self.manifest.programs:
            if name in programs:
                self.program_bytes(name)

    def bytes_of(self, file: File) -> bytes:
        """A file's bytes, checked against the manifest. A program's are for a runtime only as `program_bytes`."""
        return _read_file(self.path, file)

    def _target_file(self, file: File, engine: str) -> bytes:
        """Checked. By the end of their names: onnxruntime-training's checkpoint is no graph."""
        if not file.path.endswith(".onnx"):
            return self.bytes_of(file)
        return self._graph(file, engine, shown(file.path))

    def _graph(self, file: File, engine: str, where: str) -> bytes:
        data = self.bytes_of(file)
        if (file.sha256, engine) not in self._walked:
            check_graph(data, engine=engine, where=where)
            self._walked.add((file.sha256, engine))
        return data


def read(path: Path | str, *, engine: str | None = None) -> Bundle:
    """Read a bundle and check every byte of it; with `engine`, of what a device needs that has this one.

    Raises BundleError for a missing, damaged or newer bundle, and for a program that no runtime may be given.
    """
    path = Path(path)
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise BundleError(f"no bundle at {path}: {MANIFEST} is missing", hint="make one with `edgefl export`")
    manifest_bytes = read_bytes(manifest_path, MAX_MANIFEST_BYTES, error=BundleError)
    manifest = parse_manifest(manifest_bytes, where=str(manifest_path))
    bundle = Bundle(path, manifest, manifest_bytes)
    for file in manifest.files(engine=engine):
        bundle.bytes_of(file)
    bundle.check_graphs(engine)
    weights = bundle.weights()
    check_tensors(weights, manifest.state, where=f"{path / WEIGHTS}", error=BundleError)
    return bundle


def write(
    out: Path,
    manifest: Manifest,
    *,
    weights: Tensors,
    programs: Mapping[str, bytes],
    golden: Mapping[str, Tensors],
    targets: Mapping[str, Mapping[str, bytes]] = MappingProxyType({}),
) -> Bundle:
    """Write a bundle to the directory `out`, whole or not at all. `targets`: engine -> file name -> content.

    The manifest's `File` entries are filled in here; what they hold on entry is ignored.
    """
    contents: dict[str, bytes] = {WEIGHTS: save_tensors(weights)}
    entries: dict[str, Program] = {}
    for name, program in manifest.programs.items():
        program_path, golden_path = f"programs/{name}.onnx", f"golden/{name}.safetensors"
        contents[program_path] = programs[name]
        contents[golden_path] = save_tensors(golden[name])
        entries[name] = msgspec.structs.replace(
            program,
            file=describe(program_path, contents[program_path]),
            golden=describe(golden_path, contents[golden_path]),
        )
    others: dict[str, Target] = {}
    for engine, files in targets.items():
        contents |= {f"{engine}/{name}": data for name, data in files.items()}
        described = tuple(describe(f"{engine}/{name}", data) for name, data in files.items())
        others[engine] = msgspec.structs.replace(manifest.targets[engine], files=described)
    manifest = msgspec.structs.replace(
        manifest, programs=entries, weights=describe(WEIGHTS, contents[WEIGHTS]), targets=others
    )
    check_manifest(manifest, str(out))
    if out.exists() and not (out / MANIFEST).is_file():
        raise BundleError(f"{out} exists and is not a bundle", hint="choose another name with -o")
    with directory_atomic(out) as temporary:
        for path, data in contents.items():
            target = temporary / path
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(data)
        (temporary / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    return read(out)


def describe(path: str, data: bytes) -> File:
    """The manifest entry of a file."""
    return File(path=path, sha256=sha256_hex(data), size_bytes=len(data))


def check_tensors(
    tensors: Tensors, expected: Iterable[StateTensor], *, where: str, error: type[BundleError] = BundleError
) -> None:
    """Raise `error` unless `tensors` are exactly the expected names, dtypes and shapes."""
    wanted = {t.name: t for t in expected}
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise error(f"{where}: tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if unknown := sorted(tensors.keys() - wanted.keys()):
        raise error(f"{where}: tensor {unknown[0]!r} is not in the manifest ({len(unknown)} in all)")
    for name, want in wanted.items():
        got = tensors[name]
        if got.dtype != np.dtype(want.dtype) or got.shape != want.shape:
            raise error(f"{where}: {name!r} is {got.dtype} {list(got.shape)}; expected {want.dtype} {list(want.shape)}")


def _read_file(root: Path, file: File) -> bytes:
    path = root / file.path
    hint = "export or download it again"
    if not os.path.isfile(path):
        raise BundleError(f"{path} is missing", hint=hint)
    if (size_bytes := os.path.getsize(path)) != file.size_bytes:  # what is larger is not read
        raise BundleError(f"{path} was changed: {size_bytes} bytes, not the manifest's {file.size_bytes}", hint=hint)
    data = read_bytes(path, file.size_bytes, error=BundleError)
    if sha256_hex(data) != file.sha256:
        raise BundleError(f"{path} was changed: its SHA-256 is not the manifest's", hint=hint)
    return data
