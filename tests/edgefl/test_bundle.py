"""Bundles: every changed byte is found, nothing unsafe is read, nothing half is written."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from toy import write_regression

from edgefl import bundle as bundles
from edgefl.bundle import Bundle, read
from edgefl.errors import BundleError
from edgefl.manifest import FORMAT, MANIFEST, MAX_MANIFEST_BYTES, File, Manifest, parse_manifest, select
from edgefl.tensors import load_metadata, load_tensors, save_tensors, tensor_parts

FILES = [
    "golden/evaluate.safetensors",
    "golden/train.safetensors",
    "programs/evaluate.onnx",
    "programs/train.onnx",
    "weights.safetensors",
]


@pytest.fixture
def path(tmp_path: Path, regression: Bundle) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(regression.path, tmp_path / "copy.bundle"))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change the manifest's JSON."""
    manifest = json.loads((path / MANIFEST).read_bytes())
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def test_a_bundle_is_its_manifest_and_the_files_it_names(path: Path) -> None:
    found = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    assert found == sorted([MANIFEST, *FILES])
    bundle = read(path)
    assert sorted(file.path for file in bundle.manifest.files()) == FILES
    assert bundle.weights()["w"].tolist() == [0, 0]
    assert [t.name for t in bundle.manifest.shared()] == ["w"]
    assert bundle.manifest.tensor("moment").size_bytes == 8
    assert bundle.manifest.program("train").settings() == {"momentum": 0.0}


def test_the_same_content_is_the_same_bundle(tmp_path: Path, regression: Bundle) -> None:
    again = write_regression(tmp_path / "again.bundle")
    assert (again.sha256, again.manifest) == (regression.sha256, regression.manifest)
    assert write_regression(tmp_path / "wide.bundle", 3).sha256 != regression.sha256


@pytest.mark.parametrize("file", FILES)
def test_one_changed_byte_anywhere_in_a_file_is_found(path: Path, file: str) -> None:
    whole = (path / file).read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        (path / file).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(BundleError, match=f"{file} was changed: its SHA-256") as refused:
            read(path)
        assert refused.value.hint == "export or download it again"
    (path / file).write_bytes(whole)
    read(path)


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_cut_longer_or_missing_is_found(path: Path, file: str) -> None:
    whole = (path / file).read_bytes()
    for data in (whole[:-1], whole + b"\0", b""):
        (path / file).write_bytes(data)
        with pytest.raises(BundleError, match=f"{file} was changed"):
            read(path)
    (path / file).unlink()
    with pytest.raises(BundleError, match=f"{file} is missing"):
        read(path)


def test_a_changed_manifest_is_another_bundle_or_none(path: Path, regression: Bundle) -> None:
    """Nothing else holds the manifest's hash, so whoever downloads a bundle compares it with what was announced."""
    whole = (path / MANIFEST).read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        for byte in (whole[at] ^ 1, 0xFF):
            (path / MANIFEST).write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            try:
                assert read(path).sha256 != regression.sha256
            except BundleError:
                refused += 1
    assert refused > len(whole) // 7  # at least every 0xFF


def test_a_device_needs_no_golden_files(path: Path) -> None:
    shutil.rmtree(path / "golden")
    with pytest.raises(BundleError, match="golden"):
        read(path)
    assert read(path, engine="portable").manifest.name == "regression"


def test_an_engine_of_its_own_has_its_own_files(regression: Bundle, tmp_path: Path) -> None:
    """With files for another runtime that trains, a device with it needs these and the programs that they lack."""
    target = bundles.Target(files=(), parity={"train": regression.manifest.program("train").parity})
    manifest = msgspec.structs.replace(regression.manifest, targets={"other": target})
    made = bundles.write(tmp_path / "b", manifest, **parts_of(regression), targets={"other": {"model": b"m"}})
    files = {engine: [f.path for f in made.manifest.files(engine=engine)] for engine in ("portable", "other")}
    assert files["portable"] == ["weights.safetensors", "programs/train.onnx", "programs/evaluate.onnx"]
    assert files["other"] == ["weights.safetensors", "other/model", "programs/evaluate.onnx"]
    assert {f.path for f in made.manifest.files()} > {"golden/train.safetensors", *files["portable"], *files["other"]}
    (made.path / "other" / "model").write_bytes(b"n")
    with pytest.raises(BundleError, match="model was changed"):
        read(made.path)
    assert read(made.path, engine="portable").sha256 == made.sha256


def test_an_engine_without_files_is_told_what_to_do(regression: Bundle) -> None:
    with pytest.raises(BundleError) as refused:
        regression.manifest.files(engine="onnxruntime-training")
    assert refused.value.message == "bundle 'regression' has no files for onnxruntime-training"
    assert refused.value.hint == "export it with --target onnxruntime-training, or start the device without --engine"


def test_a_target_of_unknown_programs_is_refused(regression: Bundle, tmp_path: Path) -> None:
    target = bundles.Target(files=(), parity={"dance": regression.manifest.program("train").parity})
    manifest = msgspec.structs.replace(regression.manifest, targets={"other": target})
    with pytest.raises(BundleError, match="target 'other' names unknown program 'dance'"):
        bundles.write(tmp_path / "b", manifest, **parts_of(regression), targets={"other": {}})


def test_no_bundle_at_all(tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(BundleError, match=r"manifest\.json is missing") as refused:
            read(missing)
        assert refused.value.hint == "make one with `edgefl export`"


def test_a_newer_format_is_refused_before_anything_else_is_read(path: Path) -> None:
    edit(path, lambda m: m.update(format=FORMAT + 1, surprise={"new": True}))
    with pytest.raises(BundleError, match=f"bundle format {FORMAT + 1}; this edgefl reads {FORMAT}") as refused:
        read(path)
    assert refused.value.hint == "upgrade edgefl"


@pytest.mark.parametrize("unsafe", ["../x", "/x", "a\\b", "a/../../x", "", ".", "..", "C:x", "a/.."])
@pytest.mark.parametrize("place", ["weights", "program", "golden"])
def test_paths_that_lead_out_are_refused(path: Path, unsafe: str, place: str) -> None:
    def change(manifest: Any) -> None:
        entry = {
            "weights": manifest["weights"],
            "program": manifest["programs"]["train"]["file"],
            "golden": manifest["programs"]["train"]["golden"],
        }[place]
        entry["path"] = unsafe

    edit(path, change)
    with pytest.raises(BundleError, match="unsafe path") as refused:
        read(path)
    assert repr(unsafe) in refused.value.message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["state"].append(m["state"][0]), "two state tensors have one name"),
        (lambda m: m["programs"]["train"]["reads"].append("v"), "program 'train' names unknown state tensor 'v'"),
        (lambda m: m["programs"]["train"]["writes"].update(v="v_next"), "names unknown state tensor 'v'"),
        (lambda m: m["state"][0].update(shape=[3]), "'w' is float32 [2]; expected float32 [3]"),
        (lambda m: m["state"][0].update(dtype="int64"), "'w' is float32 [2]; expected int64 [2]"),
        (
            lambda m: m["state"].append({"name": "v", "dtype": "float32", "shape": [], "role": "buffer"}),
            "'v' is missing",
        ),
        (lambda m: m["state"][0].update(fuse="sum"), "Invalid enum value 'sum' - at `$.state[0].fuse`"),
        (lambda m: m.update(nmae="x"), "unknown field `nmae`"),
        (lambda m: m.pop("weights"), "missing required field `weights`"),
        (lambda m: m["weights"].update(size_bytes="9"), "at `$.weights.size_bytes`"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(path: Path, change: Callable[[Any], object], says: str) -> None:
    edit(path, change)
    with pytest.raises(BundleError) as refused:
        read(path)
    assert says in refused.value.message


def test_weights_that_are_not_the_manifests(path: Path) -> None:
    def drop_state(manifest: Any) -> None:
        del manifest["state"][2]
        manifest["programs"]["train"]["reads"].remove("count")
        del manifest["programs"]["train"]["writes"]["count"]

    edit(path, drop_state)
    with pytest.raises(BundleError, match="tensor 'count' is not in the manifest"):
        read(path)


@pytest.mark.parametrize(
    "data", [b"", b"null", b"{}", b'{"format": 1, "x":' + b"[" * 100_000, b'{"format":1,"a":"\xff"}']
)
def test_bytes_that_are_no_manifest(data: bytes) -> None:
    with pytest.raises(BundleError, match="^here: "):
        parse_manifest(data, where="here")


def test_a_manifest_larger_than_the_limit_is_not_parsed() -> None:
    with pytest.raises(BundleError, match="a manifest has at most"):
        parse_manifest(b" " * (MAX_MANIFEST_BYTES + 1), where="here")


def test_names_that_are_not_there_are_said(regression: Bundle) -> None:
    with pytest.raises(BundleError, match="has no program 'dream'; it has train, evaluate"):
        regression.manifest.program("dream")
    with pytest.raises(BundleError, match="has no state tensor 'v'"):
        regression.manifest.tensor("v")


# --- writing ------------------------------------------------------------------------------------------------------


def parts_of(bundle: Bundle) -> dict[str, Any]:
    programs = bundle.manifest.programs
    return {
        "weights": bundle.weights(),
        "programs": {name: bundle.bytes_of(p.file) for name, p in programs.items()},
        "golden": {name: bundle.golden(name) for name in programs},
    }


def renamed(bundle: Bundle, name: str) -> Manifest:
    return msgspec.structs.replace(bundle.manifest, name=name)


def everything(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_what_is_written_is_read_back(tmp_path: Path, regression: Bundle) -> None:
    made = bundles.write(tmp_path / "b", regression.manifest, **parts_of(regression))
    assert made.manifest == regression.manifest
    assert everything(made.path) == everything(regression.path)


@pytest.mark.parametrize("exists", [False, True])
def test_writing_is_all_or_nothing_wherever_it_fails(
    tmp_path: Path, regression: Bundle, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    """Fail at the 1st, 2nd, 3rd ... call that changes the disk: the old bundle is there whole, and no litter."""
    out = tmp_path / "b"
    failures = 0
    finished = False
    while not finished:
        shutil.rmtree(out, ignore_errors=True)
        if exists:
            bundles.write(out, renamed(regression, "old"), **parts_of(regression))
        before = everything(tmp_path)
        with monkeypatch.context() as patched:
            fail_at(patched, failures)
            try:
                bundles.write(out, renamed(regression, "new"), **parts_of(regression))
                finished = True
            except OSError:
                failures += 1
        # The very last step, making the new name durable, comes after the change: then all of it is there.
        assert everything(tmp_path) == before or read(out).manifest.name == "new"
        assert [p.name for p in tmp_path.iterdir()] == ([] if not out.exists() else ["b"])
    assert failures > 12  # six files written, each synced, and more


def fail_at(patched: pytest.MonkeyPatch, count: int) -> None:
    """A full disk at one call, the `count`-th, of those that change it."""
    calls = [0]

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == count + 1:
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        return call

    for name in ("fsync", "replace", "chmod"):
        patched.setattr(os, name, failing(getattr(os, name)))
    patched.setattr(Path, "write_bytes", failing(Path.write_bytes))


def test_an_unsafe_or_mismatched_bundle_is_not_written(tmp_path: Path, regression: Bundle) -> None:
    twice = msgspec.structs.replace(regression.manifest, state=regression.manifest.state * 2)
    with pytest.raises(BundleError, match="two state tensors"):
        bundles.write(tmp_path / "b", twice, **parts_of(regression))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_not_overwritten(tmp_path: Path, regression: Bundle) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        bundles.write(tmp_path, regression.manifest, **parts_of(regression))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_reading_a_bundle_needs_neither_torch_nor_onnx(regression: Bundle) -> None:
    code = (
        "import sys; from edgefl.bundle import read; b = read(sys.argv[1]); b.golden('train');"
        "print(b.sha256, sorted({'torch', 'onnx', 'onnxruntime', 'onnxscript'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(regression.path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"{regression.sha256} []"


# --- small things -------------------------------------------------------------------------------------------------


def test_equal_tensors_are_equal_bytes_whatever_their_order_and_layout() -> None:
    a, b = np.arange(6, dtype="f4").reshape(2, 3), np.array(1)
    data = save_tensors({"a": a, "b": b})
    assert save_tensors({"b": b, "a": np.asfortranarray(a)}) == data
    assert save_tensors({"b": b, "a": a + 1}) != data
    back = load_tensors(data, "it")
    assert back["a"].tolist() == a.tolist() and back["b"].shape == ()


DTYPES = [*"?bBhHiIefdqQ", "c8"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@given(
    shapes=st.dictionaries(TEXT, st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3))),
    metadata=st.none() | st.dictionaries(TEXT, TEXT, min_size=1, max_size=1),
)
def test_they_are_the_bytes_of_the_safetensors_library(
    shapes: dict[str, tuple[str, list[int]]], metadata: dict[str, str] | None
) -> None:
    tensors = {
        name: np.arange(math.prod(shape)).reshape(shape).astype(dtype) for name, (dtype, shape) in shapes.items()
    }
    assert save_tensors(tensors, metadata) == safetensors.numpy.save(tensors, metadata)
    big_endian = {name: value.astype(value.dtype.newbyteorder(">")) for name, value in tensors.items()}
    assert save_tensors(big_endian, metadata) == save_tensors(tensors, metadata)


def test_parts_are_the_arrays_themselves() -> None:
    w = np.arange(6, dtype="f4")
    _, part = tensor_parts({"w": w})
    assert isinstance(part, memoryview)
    w[0] = 7
    assert bytes(part) == w.tobytes()


def test_text_beside_tensors() -> None:
    assert load_metadata(save_tensors({}, {"about": "gr\u00fcn"})) == {"about": "gr\u00fcn"}
    for data in (save_tensors({}), b"", b"\x02\0\0\0\0\0\0\0[]"):
        with pytest.raises(ValueError):
            load_metadata(data)


def test_globs_and_exact_names() -> None:
    names = ["a.w", "a.b", "b.w", "c[0].w"]
    assert select(names, ["*"]) == names
    assert select(names, ["*.w", "a.*"]) == names
    assert select(names, ["b.w", "a.?"]) == ["a.w", "a.b", "b.w"]
    assert select(names, ["c[0].w"]) == ["c[0].w"]
    assert select(names, []) == select([], ["*"]) == []


def test_a_file_is_described_by_its_content() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert bundles.describe("x", b"") == File("x", empty, 0)
