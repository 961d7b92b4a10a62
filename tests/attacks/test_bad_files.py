"""Files of a stranger, or of a bad disk: each reader gives a value or one typed line, in a bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from records import record
from waves import wav

from edgefl import bundle as bundles
from edgefl.aggregator.classes import Examples
from edgefl.aggregator.rounds import Announce
from edgefl.aggregator.store import Store, read_classes, read_records
from edgefl.bundle import Bundle
from edgefl.errors import BundleError, ConfigError, DataError, EdgeflError, InputError
from edgefl.manifest import MAX_MANIFEST_BYTES, parse_manifest
from edgefl.method import Ask, State
from edgefl.runs.run_file import parse_run_file, read_run_file
from edgefl.tensors import load_tensors, save_tensors
from edgefl_device.sources import read_splits
from edgefl_device.wire.download import Download
from edgefl_device.work.journal import Journal, Kept
from edgefl_device.work.kept import Buffers

DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 5_000  # more digits than Python reads
ODD_JSON = [
    "",
    "{",
    "null",
    "[]",
    "{}",
    '"text"',
    "1e999",
    "\ufeff{}",
    DEEP,
    '{"a":' * 50_000 + "1" + "}" * 50_000,
    LONG,
    f'{{"round": {LONG}}}',
    '{"round": 1e400, "epoch": 1e400}',
    '{"round": -1, "epoch": -1}',
    '{"epoch": true, "secret": "s"}',
    '{"epoch": 1, "secret": null}',
    '{"epoch": 99999999999999999999999999999999, "secret": "s"}',
]


def short(value: object) -> str:
    """What a test's case is called."""
    return repr(value)[:40]


def refused(kind: type[EdgeflError], name: str, read: Callable[[], object]) -> str:
    """The one line of the typed error, which names the file."""
    with pytest.raises(kind) as caught:
        read()
    assert name in caught.value.message and caught.value.message.isprintable()
    assert len(caught.value.message) <= 2000
    return caught.value.message


def safe(read: Callable[[], object]) -> None:
    """A value or a typed error; any other exception fails."""
    try:
        read()
    except EdgeflError as error:
        assert error.message.isprintable()


def safetensors(header: str | bytes, body: bytes = b"") -> bytes:
    data = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(data)) + data + body


def about(key: str, text: str, **tensors: np.ndarray) -> bytes:
    return save_tensors(tensors, {key: text})


def mutations(whole: bytes) -> st.SearchStrategy[bytes]:
    """`whole` cut, with some bytes changed, with a piece taken out, put in or doubled."""
    at = st.integers(0, len(whole))

    def change(data: bytes, where: int, length: int, new: bytes) -> bytes:
        return data[:where] + new + data[where + length :]

    piece = st.builds(change, st.just(whole), at, st.integers(0, 8), st.binary(max_size=8))
    twice = st.builds(change, piece, at, st.integers(0, 8), st.binary(max_size=8))
    return st.one_of(piece, twice, at.map(lambda n: whole[:n]), at.map(lambda n: whole + whole[:n]))


FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


# --- manifests ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(regression: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(regression.path, tmp_path / "copy.bundle"))


def rename(path: Path, name: str, **more: Any) -> None:
    """The manifest calls the program `evaluate` something else."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["programs"]["evaluate"]["file"] |= {"path": name, **more}
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a\0b",
            "a" * 5000,
            "a/" * 40 + "a",
            ".hidden",
            "programs/.x",
            "a//b",
            "a/",
            "a/./b",
            "a\nb",
            "a b",
            "\x1b[2J",
        ),
        *("con", "NUL.onnx", "a/com1.txt", "x.", "a?b", "a*b", '"', "a|b", "~/x", "grün", "a\u202eb", "\ud800"),
        *("manifest.json", "MANIFEST.json", "manifest.json/a", "weights.safetensors", "Weights.safetensors"),
        *("programs", "programs/train.onnx/x", "PROGRAMS/TRAIN.ONNX", "weights.safetensors/x"),
    ],
    ids=short,
)
def test_paths_that_are_not_a_files_own_on_every_system(bundle: Path, name: str) -> None:
    rename(bundle, name)
    says = refused(BundleError, "manifest.json", lambda: bundles.read(bundle))
    assert "unsafe path" in says or "surrogate" in says or "UTF-8" in says or "hex escape" in says
    (bundle / "manifest.json").unlink()
    assert sorted(p.name for p in bundle.iterdir()) == ["golden", "programs", "weights.safetensors"]


def test_one_file_may_be_named_twice_with_the_same_content(bundle: Path) -> None:
    train = bundles.read(bundle).manifest.programs["train"].file
    rename(bundle, train.path, sha256=train.sha256, size_bytes=train.size_bytes)
    assert bundles.read(bundle).manifest.programs["evaluate"].file == train


@pytest.mark.parametrize(
    "more", [{"size_bytes": -1}, {"size_bytes": 2**40}, {"sha256": "../../x"}, {"sha256": "A" * 64}]
)
def test_sizes_and_hashes_that_no_file_has(bundle: Path, more: dict[str, Any]) -> None:
    rename(bundle, "programs/evaluate.onnx", **more)
    assert "expected at most" in refused(BundleError, "manifest.json", lambda: bundles.read(bundle))


def test_a_folder_where_a_file_belongs(bundle: Path) -> None:
    (bundle / "programs" / "train.onnx").unlink()
    (bundle / "programs" / "train.onnx").mkdir()
    refused(BundleError, "train.onnx", lambda: bundles.read(bundle))
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").mkdir()
    refused(BundleError, "copy.bundle", lambda: bundles.read(bundle))


@pytest.mark.parametrize("text", [*ODD_JSON, '{"format": 0}', '{"format": -3}', f'{{"format": {LONG}}}'], ids=short)
def test_a_manifest_that_is_odd_json(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    refused(BundleError, "manifest.json", lambda: bundles.read(bundle))


def test_many_tensors_of_one_name_are_found_at_once(bundle: Path) -> None:
    """20,000 names compared with each other took ten seconds."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    one = manifest["state"][0]
    manifest["state"] = [one | {"name": f"t{i}", "group": f"g{i % 19_999}"} for i in range(20_000)]
    for program in manifest["programs"].values():
        program |= {"reads": [], "writes": {}}
    text = json.dumps(manifest)
    code = (
        "import sys, time; from edgefl.bundle import parse_manifest; data = sys.stdin.buffer.read()\n"
        "from edgefl.errors import BundleError\n"
        "start = time.process_time()\n"
        "try: parse_manifest(data, where='m')\n"
        "except BundleError as error: print(time.process_time() - start, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True)
    seconds, says = done.stdout.split(" ", 1)
    assert "two state tensors are in the fusion group 'g0'" in says and float(seconds) < 2


@FUZZ
@given(data=st.data())
def test_a_mutated_manifest(regression: Bundle, data: st.DataObject) -> None:
    changed = data.draw(mutations(regression.manifest_bytes))
    safe(lambda: parse_manifest(changed, where="manifest.json"))


def test_a_downloaded_file_that_cannot_be_stored(regression: Bundle, tmp_path: Path) -> None:
    from edgefl.protocol import BlobRef

    download = Download(BlobRef(regression.sha256, len(regression.manifest_bytes)), tmp_path, "portable")
    weights = regression.manifest.weights
    folder = tmp_path / regression.sha256[:16]
    (folder / weights.path / "x").mkdir(parents=True)
    download.take(regression.sha256, regression.manifest_bytes)
    data = regression.bytes_of(weights)
    refused(BundleError, str(folder), lambda: download.take(weights.sha256, data))
    assert [p.name for p in folder.iterdir()] == [weights.path], "nothing is half-written"


# --- safetensors --------------------------------------------------------------------------------------------------

ODD_TENSORS = {
    "nothing": b"",
    "short": b"abc",
    "a header longer than the file": struct.pack("<Q", 100) + b"{}",
    "a header of 2^64 bytes": b"\xff" * 8,
    "a dtype numpy lacks": safetensors('{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}', b"\0\0"),
    "bits": safetensors('{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', b"\0"),
    "100 dimensions": safetensors(
        '{"a":{"dtype":"U8","shape":[' + ",".join("1" * 100) + '],"data_offsets":[0,1]}}', b"\0"
    ),
    "an array of 2^96": safetensors(
        '{"a":{"dtype":"U8","shape":[0,4294967296,4294967296,4294967296],"data_offsets":[0,0]}}'
    ),
    "nested": safetensors('{"__metadata__":{"a":' + DEEP + "}}"),
    "a surrogate": safetensors('{"__metadata__":{"a":"\\ud800"}}'),
    "not UTF-8": safetensors(b'{"\xff":1}'),
}


@pytest.mark.parametrize("data", ODD_TENSORS.values(), ids=ODD_TENSORS)
def test_odd_safetensors(data: bytes) -> None:
    refused(BundleError, "here.safetensors", lambda: load_tensors(data, "here.safetensors"))


@FUZZ
@given(changed=mutations(save_tensors({"a": np.arange(3, dtype=np.float32), "n": np.array(1)}, {"about": "{}"})))
def test_mutated_safetensors(changed: bytes) -> None:
    safe(lambda: load_tensors(changed, "here.safetensors"))


# --- a device's journal and buffers -------------------------------------------------------------------------------

W = {"w": np.array([1, 2], np.float32)}
KEPT = Kept("0" * 64, 3, "0" * 16, 5, 3, {"train.loss": 0.5}, reply=W, private=W)


def journal(folder: Path) -> bytes:
    Journal(folder, "run").write(KEPT)
    return (folder / "run.journal").read_bytes()


@pytest.mark.parametrize(
    "data",
    [
        *ODD_TENSORS.values(),
        *(about("kept", text) for text in ODD_JSON),
        about("other", "{}"),
        about("kept", json.dumps({"bundle": "b", "round": 1, "nonce": "n", "examples": 1, "steps": 1, "metrics": []})),
        about(
            "kept",
            json.dumps({"bundle": "b", "round": 1, "nonce": "n", "examples": 1, "steps": 1, "metrics": {"a": "b"}}),
        ),
        about(
            "kept", json.dumps({"bundle": "b", "round": "1", "nonce": "n", "examples": 1, "steps": 1, "metrics": {}})
        ),
        about("kept", '{"bundle":"b","round":1e30,"nonce":"n","examples":1,"steps":1,"metrics":{}}'),
        about("kept", '{"bundle":"b","round":1,"nonce":"n","examples":1,"steps":1,"metrics":{"a":' + "9" * 400 + "}}"),
    ],
    ids=short,
)
def test_a_damaged_journal_says_what_to_do(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "run.journal").write_bytes(data)
    refused(InputError, "run.journal", Journal(tmp_path, "run").read)


def test_a_folder_or_a_pipe_where_the_journal_belongs(tmp_path: Path) -> None:
    (tmp_path / "run.journal").mkdir()
    os.mkfifo(tmp_path / "pipe.journal")
    for run in ("run", "pipe"):
        refused(InputError, f"{run}.journal", Journal(tmp_path, run).read)


@FUZZ
@given(data=st.data())
def test_a_mutated_journal(tmp_path: Path, data: st.DataObject) -> None:
    changed = data.draw(mutations(journal(tmp_path)))
    (tmp_path / "run.journal").write_bytes(changed)
    safe(Journal(tmp_path, "run").read)


def buffers(folder: Path) -> Path:
    """A buffer "dreams" with one entry, of round 0; its file."""
    (folder / "dreams").mkdir(parents=True, exist_ok=True)
    return folder / "dreams" / "0.safetensors"


def entry(text: str = '{"ask": "a", "since": 0, "capacity": 4}', **tensors: np.ndarray) -> bytes:
    return about("about", text, **(tensors or {"x": np.ones((2, 2), np.float32)}))


def test_a_good_buffer_is_read_and_odd_names_beside_it_are_none(tmp_path: Path) -> None:
    buffers(tmp_path).write_bytes(entry())
    for name in ("00.safetensors", "\u0663.safetensors", "x.safetensors", ".0.safetensors.abcd1234"):
        (tmp_path / "dreams" / name).write_bytes(b"")
    assert len(Buffers(tmp_path, round=1).examples("dreams", "here")["x"]) == 2


@pytest.mark.parametrize(
    "data",
    [
        *ODD_TENSORS.values(),
        *(entry(text) for text in ODD_JSON),
        entry('{"ask": "a", "since": 0, "capacity": 0}'),
        entry('{"ask": "a", "since": 0, "capacity": -4}'),
        entry('{"ask": "a", "since": 5, "capacity": 4}'),
        entry('{"ask": "a", "since": 0.5, "capacity": 4}'),
        entry(z=np.ones(1)),
        entry(x=np.array(1.0)),
        entry(x=np.ones((2, 2)), y=np.ones(3)),
    ],
    ids=short,
)
def test_a_damaged_buffer_says_what_to_do(tmp_path: Path, data: bytes) -> None:
    buffers(tmp_path).write_bytes(data)
    refused(DataError, "0.safetensors", lambda: Buffers(tmp_path, round=1).examples("dreams", "here"))


@FUZZ
@given(changed=mutations(entry()))
def test_a_mutated_buffer(tmp_path: Path, changed: bytes) -> None:
    buffers(tmp_path).write_bytes(changed)
    safe(lambda: Buffers(tmp_path, round=1).examples("dreams", "here"))


# --- a run directory ----------------------------------------------------------------------------------------------

RECORD = msgspec.json.encode(record(1)).decode()


def changed(**fields: object) -> str:
    """The line of a record with some fields replaced."""
    return json.dumps(json.loads(RECORD) | fields)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    store = Store.create(tmp_path / "run", 'name = "a"\n')
    store.save_device("pi-1", "all", Examples(2, 1))
    store.save_round(State(1, W, {"n": 1, "residual": 0.5}), record(1, metrics={"train.loss": math.nan}, bytes_up=3))
    store.save_open_round(Announce(1, 0, "0" * 16, Ask((), {}), ("pi-1",), 60.0))
    store.close()
    return tmp_path / "run"


def open_run(path: Path) -> None:
    """All that a resume and a report read."""
    store = Store.open(path)
    try:
        store.load_state(), store.records(), store.open_round(), store.classes()
    finally:
        store.close()


def test_a_record_with_nan_has_null_and_whole_numbers_stay_whole(run: Path) -> None:
    store = Store.open(run)
    (found,) = store.records()
    state = store.load_state()
    store.close()
    assert found.metrics == {"train.loss": None} and isinstance(found.bytes_up, int)
    assert state is not None and repr(dict(state.numbers)) == "{'n': 1, 'residual': 0.5}"


@pytest.mark.parametrize(
    "text", [*ODD_JSON, '{"epoch": 1, "secret": ""}', json.dumps({"epoch": 1, "secret": "s" * 300})], ids=short
)
def test_a_damaged_run_json(run: Path, text: str) -> None:
    (run / "run.json").write_text(text)
    refused(ConfigError, "run.json", lambda: open_run(run))
    assert (run / "run.json").read_text() == text, "nothing is written over it"


@pytest.mark.parametrize(
    "text",
    [
        *ODD_JSON,
        '{"round": 1, "attempt": 0, "devices": "pi-1", "quorum": 1}',
        '{"round": 1, "attempt": 0, "devices": ["../x"], "quorum": 1}',
        '{"round": 1, "attempt": 0, "devices": [1], "quorum": 1}',
        '{"round": -1, "attempt": 0, "devices": ["pi-1"], "quorum": 1}',
        '{"round": 1, "attempt": 0, "devices": ["pi-1"], "quorum": 1.5}',
        '{"round": 1, "attempt": 0, "devices": ["pi-1"], "quorum": 1e300}',
    ],
    ids=short,
)
def test_a_damaged_open_json(run: Path, text: str) -> None:
    (run / "open.json").write_text(text)
    refused(ConfigError, "open.json", lambda: open_run(run))


@pytest.mark.parametrize(
    "data",
    [
        *ODD_TENSORS.values(),
        *(about("about", text) for text in ODD_JSON),
        about("about", f'{{"round": 1, "numbers": {{"a": "b"}}, "record": {RECORD}}}'),
        about("about", '{"round": 1, "numbers": {}, "record": {}}'),
        about("about", '{"round": 1, "numbers": {}, "record": []}'),
        about("about", f'{{"round": "1", "numbers": {{}}, "record": {RECORD}}}'),
    ],
    ids=short,
)
def test_a_damaged_state(run: Path, data: bytes) -> None:
    (run / "state.safetensors").write_bytes(data)
    refused(ConfigError, "state.safetensors", lambda: open_run(run))


@pytest.mark.parametrize("name", ["metrics.jsonl", "devices.jsonl"])
@pytest.mark.parametrize("text", [text for text in ODD_JSON if text], ids=short)
def test_a_damaged_line(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text + "\n")
    refused(ConfigError, name, lambda: open_run(run))
    refused(ConfigError, name, lambda: (read_records(run / "metrics.jsonl"), read_classes(run)))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("metrics.jsonl", '{"round": 1}'),
        ("metrics.jsonl", changed(round="1")),
        ("metrics.jsonl", changed(bytes_up="3")),
        ("metrics.jsonl", changed(devices="pi-1")),
        ("metrics.jsonl", changed(measured={"pi-1": [1]})),
        ("metrics.jsonl", changed(metrics={"train.loss": "low"})),
        ("metrics.jsonl", changed(accuracy=[])),
        ("metrics.jsonl", changed(acuracy=0.5)),
        ("devices.jsonl", '{"device": "../x", "class": "all"}'),
        ("devices.jsonl", '{"device": "pi-1"}'),
        ("devices.jsonl", '{"device": "pi-1", "class": 1}'),
    ],
)
def test_a_line_of_another_kind(run: Path, name: str, line: str) -> None:
    (run / name).write_text(line + "\n")
    refused(ConfigError, name, lambda: open_run(run))


@pytest.mark.parametrize("name", ["run.json", "state.safetensors", "open.json", "metrics.jsonl", "devices.jsonl"])
def test_a_folder_where_a_file_of_a_run_belongs(run: Path, name: str) -> None:
    (run / name).unlink()
    (run / name).mkdir()
    refused(ConfigError, name, lambda: open_run(run))


@FUZZ
@given(data=st.data(), name=st.sampled_from(["run.json", "open.json", "state.safetensors", "metrics.jsonl"]))
def test_a_mutated_run(run: Path, data: st.DataObject, name: str) -> None:
    files = {path: path.read_bytes() for path in run.iterdir()}
    (run / name).write_bytes(data.draw(mutations(files[run / name])))
    try:
        safe(lambda: open_run(run))
    finally:
        for path, content in files.items():
            path.write_bytes(content)


# --- run files ----------------------------------------------------------------------------------------------------

RUN_FILE = 'name = "a"\nbundle = "b"\n'


@pytest.mark.parametrize(
    "text",
    [
        RUN_FILE + f"x = {DEEP}",
        RUN_FILE + "[method]\nx = " + "[" * 300 + "]" * 300,
        RUN_FILE + "[method" + ".a" * 2_000 + "]\n",
        RUN_FILE + "method = " + "{a=" * 3_000 + "1" + "}" * 3_000,
        RUN_FILE + f"seed = {LONG}",
        RUN_FILE + "seed = " + "9" * 4_000,
        RUN_FILE + "[method]\nrounds = " + "9" * 400,
        RUN_FILE + "[method]\nlearning_rate = " + "9" * 400,
        RUN_FILE + "[method]\nname = ['fedavg']",
        RUN_FILE + "[method]\nname = {a = 1}",
        RUN_FILE + '[method]\nweight = "a\\u0000b.py:mine"',
        'name = "a"\nbundle = "b\\u0000c"\n',
        'name = "a"\nbundle = ""\n',
        'name = "a"\nmodel = ""\n',
        'name = "a"\n[[bundle]]\npath = ""\n',
        RUN_FILE + '"\\u001b[2J\\u202e" = 1',
        RUN_FILE + "k" * 5_000 + " = 1",
    ],
    ids=short,
)
def test_an_odd_run_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    refused(ConfigError, "run.toml", lambda: read_run_file(tmp_path / "run.toml"))


def test_a_run_file_that_is_too_large_or_no_file(tmp_path: Path) -> None:
    with open(tmp_path / "large.toml", "wb") as file:
        file.truncate(2**31)
    assert "at most 1048576" in refused(ConfigError, "large.toml", lambda: read_run_file(tmp_path / "large.toml"))
    os.mkfifo(tmp_path / "pipe.toml")
    refused(ConfigError, "pipe.toml", lambda: read_run_file(tmp_path / "pipe.toml"))


WHOLE_RUN_FILE = b"""name = "a"
seed = 3
[[bundle]]
model = "zoo:cnn"
for = "memory_mb >= 2000"
options = { seed = 1 }
[method]
name = "fedavg"
rounds = 3
settings = { max_steps = 4 }
[round]
quorum = 0.5
[fleet]
devices = 2
data = "digits"
"""


@FUZZ
@given(changed=mutations(WHOLE_RUN_FILE))
def test_a_mutated_run_file(changed: bytes) -> None:
    safe(lambda: parse_run_file(changed.decode(errors="replace"), where="run.toml"))


# --- data: npz ----------------------------------------------------------------------------------------------------


def npy(header: str | bytes, body: bytes = b"", version: bytes = b"\x01\0", length: int | None = None) -> bytes:
    data = header.encode("latin-1") if isinstance(header, str) else header
    width = "<H" if version == b"\x01\0" else "<I"
    return b"\x93NUMPY" + version + struct.pack(width, len(data) if length is None else length) + data + body


def described(descr: str = "'|u1'", shape: str = "(2, 2)", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n"


def archive(path: Path, x: bytes, y: bytes = b"", compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as made:
        made.writestr("x.npy", x)
        made.writestr("y.npy", y or npy(described(shape="(2,)"), b"\0\1"))
    return path


GOOD = npy(described(), b"\1\2\3\4")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "?", "<f4", ">f8", "<i8", "<f2"])
def test_npz_is_read_as_numpy_reads_it(tmp_path: Path, dtype: str, order: Any) -> None:
    x = np.asarray(np.arange(24).reshape(4, 3, 2), dtype, order=order)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", x=x, y=np.arange(4), objects=np.array([print], object))
        got = read_splits(tmp_path / "a.npz").train
        assert got.features.dtype == x.dtype and got.features.tolist() == x.tolist()
        got.features[0] = 0  # its own, and writable


ODD_NPY = {
    "TokenError": npy("{'descr': (((("),
    "SyntaxError": npy("{'descr': '|u1' 'fortran"),
    "a null in the source": npy(described() + "\0"),
    "nested": npy("(" * 5_000 + ")" * 5_000),
    "nested lists": npy("[" * 900 + "]" * 900),
    "no dict": npy("1"),
    "other keys": npy("{}"),
    "UTF-8": npy(b"{'\xff\xfe': 1}", version=b"\x02\0"),
    "a shape of texts": npy(described(shape="('a',)")),
    "a negative shape": npy(described(shape="(-4, -1)"), b"\1\2\3\4"),
    "a shape of 2^200": npy(described(shape=f"({2**200},)")),
    "100 dimensions": npy(described(shape="(" + "1," * 100 + ")"), b"\1"),
    "an odd dtype": npy(described("'|zz'")),
    "a dtype of nothing": npy(described("'|V0'", "(2, 2)")),
    "fields": npy(described("[('a', '|u1'), ('b', '<f4')]", "(2,)"), b"\0" * 10),
    "fields in fields": npy(described("[('a', " * 60 + "'|u1'" + ")]" * 60, "(2,)"), b"\0\0"),
    "objects": npy(described("'|O'", "(2,)"), b"cos\nsystem\n(S'true'\ntR."),
    "version 3": npy(described(), b"\1\2\3\4", b"\x03\0"),
    "version 9": npy(described(), b"\1\2\3\4", b"\x09\0"),
    "no magic": b"hello",
    "nothing": b" ",
    "a header longer than the file": npy(described(), b"", length=9_000),
    "a header of 4 GiB": npy(described(), b"", b"\x02\0", length=2**32 - 1),
    "fewer bytes than it says": npy(described(), b"\1\2\3"),
    "more bytes than it says": npy(described(), b"\1\2\3\4\5"),
    "examples of nothing": npy(described(shape="(2, 0)")),
    "no examples at all": npy(described(shape="()"), b"\1"),
    "other than the labels": npy(described(shape="(4, 1)"), b"\1\2\3\4"),
}


@pytest.mark.parametrize("member", ODD_NPY.values(), ids=ODD_NPY)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_odd_arrays_in_an_npz(tmp_path: Path, member: bytes, compression: int) -> None:
    path = archive(tmp_path / "odd.npz", member, compression=compression)
    if member in (ODD_NPY["fields"], ODD_NPY["fields in fields"]):
        return safe(lambda: read_splits(path))  # an array, which no contract wants
    refused(DataError, "odd.npz", lambda: read_splits(path))


def patched(path: Path, find: bytes, replace: bytes, count: int = -1) -> Path:
    path.write_bytes(path.read_bytes().replace(find, replace, count))
    return path


def odd_archives(folder: Path) -> dict[str, Path]:
    """Zips that raise NotImplementedError, RuntimeError, BadZipFile, zlib.error and EOFError, among others."""
    found: dict[str, Path] = {}

    def new(name: str, compression: int = zipfile.ZIP_DEFLATED, x: bytes = GOOD) -> Path:
        found[name] = archive(folder / f"{len(found)}.npz", x, compression=compression)
        return found[name]

    new("bzip2", zipfile.ZIP_BZIP2)
    new("lzma", zipfile.ZIP_LZMA)
    data = bytearray(new("a compression that nobody knows").read_bytes())
    for magic, at in ((b"PK\1\2", 10), (b"PK\3\4", 8)):
        data[data.index(magic) + at : data.index(magic) + at + 2] = b"\x61\0"
    found["a compression that nobody knows"].write_bytes(data)
    data = bytearray(new("encrypted").read_bytes())
    for magic, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        data[data.index(magic) + at] |= 1
    found["encrypted"].write_bytes(data)
    data = bytearray(new("of a newer zip").read_bytes())
    data[data.index(b"PK\1\2") + 6] = 99
    found["of a newer zip"].write_bytes(data)
    data = bytearray(new("damaged within the deflated bytes").read_bytes())
    start = data.index(b"x.npy") + 5
    data[start : start + 4] = b"\xff\xff\xff\xff"
    found["damaged within the deflated bytes"].write_bytes(data)
    patched(new("another CRC", zipfile.ZIP_STORED), b"\1\2\3\4PK", b"\4\3\2\1PK")
    patched(new("a member whose header is gone"), b"PK\3\4", b"XXXX", 1)
    data = bytearray(new("a member far away").read_bytes())
    at = data.index(b"PK\1\2") + 42
    data[at : at + 4] = b"\xff\xff\xff\x7f"
    found["a member far away"].write_bytes(data)
    for size in (10, 60, 200):
        path = new(f"cut after {size} bytes")
        path.write_bytes(path.read_bytes()[:size])
    for name, content in (
        ("a text", b"not a zip"),
        ("nothing", b""),
        ("the end of a zip only", b"PK\5\6" + b"\0" * 18),
    ):
        new(name).write_bytes(content)
    return found


def test_odd_archives(tmp_path: Path) -> None:
    for name, path in odd_archives(tmp_path).items():
        assert refused(DataError, path.name, lambda path=path: read_splits(path)), name  # type: ignore[misc]


@settings(FUZZ, max_examples=150)
@given(data=st.data(), packed=st.booleans())
def test_a_mutated_npz(tmp_path: Path, data: st.DataObject, packed: bool) -> None:
    path = archive(tmp_path / "a.npz", GOOD, compression=zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    path.write_bytes(data.draw(mutations(path.read_bytes())))
    safe(lambda: read_splits(path))


@settings(FUZZ, max_examples=150)
@given(member=mutations(GOOD))
def test_a_mutated_array_in_a_whole_npz(tmp_path: Path, member: bytes) -> None:
    safe(lambda: read_splits(archive(tmp_path / "a.npz", member)))


# --- data: IDX, CSV, images ---------------------------------------------------------------------------------------


def idx(folder: Path, images: bytes, labels: bytes = b"\0\0\x08\x01\0\0\0\x02\0\1") -> Path:
    (folder / "a-images.idx").write_bytes(images)
    (folder / "a-labels.idx").write_bytes(labels)
    return folder / "a-images.idx"


GOOD_IDX = b"\0\0\x08\x02" + struct.pack(">2I", 2, 2) + b"\1\2\3\4"


@pytest.mark.parametrize(
    "images",
    [
        b"\0\0\x08\0\1",
        b"\0\0\x08\xff" + struct.pack(">255I", *[1] * 255) + b"\1",
        b"\0\0\x08\x04" + struct.pack(">4I", 0, 2**32 - 1, 2**32 - 1, 2**32 - 1),
        b"\0\0\x08\x02" + struct.pack(">2I", 2, 0),
        b"\0\0\x08\x02" + struct.pack(">2I", 4, 1) + b"\1\2\3\4",
        gzip.compress(GOOD_IDX, mtime=0)[:-8],
        gzip.compress(GOOD_IDX, mtime=0)[:12] + b"\xff" * 20,
        b"\x1f\x8b",
        b"\x1f\x8b\x08\xff" + b"\xff" * 20,
        gzip.compress(b"", mtime=0),
    ],
    ids=short,
)
def test_odd_idx(tmp_path: Path, images: bytes) -> None:
    path = idx(tmp_path, images)
    refused(DataError, "a-images.idx", lambda: read_splits(path))


@FUZZ
@given(changed=mutations(GOOD_IDX) | mutations(gzip.compress(GOOD_IDX, mtime=0)))
def test_a_mutated_idx(tmp_path: Path, changed: bytes) -> None:
    safe(lambda: read_splits(idx(tmp_path, changed)))


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b'"' + b"x" * 200_000, b"1,2\n" + b"9" * 200_000 + b",1\n", b"\xef\xbb\xbf"],
    ids=short,
)
def test_odd_csv(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    refused(DataError, "a.csv", lambda: read_splits(tmp_path / "a.csv"))


def test_numbers_too_large_for_a_float_are_for_the_contract_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1e300,1e300\n1,2\n")
    data = read_splits(tmp_path / "a.csv").train
    assert data.features.tolist() == [[np.inf], [1]] and data.labels.tolist() == [np.inf, 2]


@FUZZ
@given(changed=mutations(b"a,b,label\n1,2,cat\n3,4.5,dog\n"))
def test_a_mutated_csv(tmp_path: Path, changed: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(changed)
    safe(lambda: read_splits(tmp_path / "a.csv"))


def rows(form: str) -> bytes:
    """Two rows of a Parquet file, or of one that Hugging Face's datasets saved."""
    data, table = io.BytesIO(), pa.table({"x": [[1.0, 2.0], [3.0, 4.0]], "label": ["cat", "dog"]})
    if form == "parquet":
        pq.write_table(table, data)
    else:
        with pa.ipc.new_stream(data, table.schema) as stream:
            stream.write_table(table)
    return data.getvalue()


@settings(FUZZ, max_examples=60)
@given(data=st.data(), form=st.sampled_from(["parquet", "arrow"]))
def test_a_mutated_table_of_arrow(tmp_path: Path, data: st.DataObject, form: str) -> None:
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    (tmp_path / f"a.{form}").write_bytes(data.draw(mutations(rows(form))))
    safe(lambda: read_splits(tmp_path / "a.parquet" if form == "parquet" else tmp_path))


def picture(form: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (3, 2), (10, 20, 30)).save(data, form)
    return data.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, packed: bytes) -> bytes:
    """A grey PNG whose pixels are `packed`."""
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def images(folder: Path, content: bytes, name: str = "a.png") -> Path:
    (folder / "cat").mkdir(exist_ok=True)
    (folder / "cat" / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        picture("PNG")[:40],
        picture("JPEG")[:300],
        picture("GIF")[:20],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        picture("TIFF"),
        b"P6 9 9 99999999999\n",
        b"P5\n" + b"9" * 5_000 + b" 1 255\n",
        b"BM" + b"\xff" * 60,
        b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\xff" * 60,
        png(0, 1, b""),
        png(2, 2, b"no zlib"),
    ],
    ids=short,
)
def test_odd_images(tmp_path: Path, content: bytes) -> None:
    refused(DataError, "a.png", lambda: read_splits(images(tmp_path, content)))


@pytest.mark.parametrize("side", [10_000, 60_000, 2**31 - 1])  # at the first Pillow only warns
def test_images_of_too_many_pixels(tmp_path: Path, side: int) -> None:
    assert "has too many pixels" in refused(
        DataError, "a.png", lambda: read_splits(images(tmp_path, png(side, side, b"")))
    )


def test_a_folder_or_a_pipe_for_an_image(tmp_path: Path) -> None:
    (tmp_path / "cat" / "a.png").mkdir(parents=True)
    refused(DataError, "a.png", lambda: read_splits(tmp_path))
    (tmp_path / "cat" / "a.png").rmdir()
    os.mkfifo(tmp_path / "cat" / "a.png")
    refused(DataError, "a.png", lambda: read_splits(tmp_path))
    os.mkfifo(tmp_path / "a.npz")
    refused(DataError, "a.npz", lambda: read_splits(tmp_path / "a.npz"))
    refused(DataError, r"a\x00b.npz", lambda: read_splits("a\0b.npz"))
    refused(DataError, "cannot be read", lambda: read_splits("a" * 1_000))


@settings(FUZZ, max_examples=100)
@given(data=st.data(), form=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP"]))
def test_a_mutated_image(tmp_path: Path, data: st.DataObject, form: str) -> None:
    changed = data.draw(mutations(picture(form)))
    safe(lambda: read_splits(images(tmp_path, changed)))


@settings(FUZZ, max_examples=100)
@given(data=st.data(), bits=st.sampled_from([8, 16, 24]))
def test_a_mutated_sound(tmp_path: Path, data: st.DataObject, bits: int) -> None:
    changed = data.draw(mutations(wav([1, 2, 3], bits=bits)))
    safe(lambda: read_splits(images(tmp_path, changed, "a.wav")))


# --- bombs, each in a process of its own whose memory is measured -------------------------------------------------

PEAK = """
import os, resource, sys
from pathlib import Path
import PIL.Image
from edgefl import bundle
from edgefl.errors import EdgeflError
from edgefl_device.sources import read_splits
def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)
before = peak_mb()
try:
    (bundle.read if sys.argv[1].endswith(".bundle") else read_splits)(Path(sys.argv[1]))
    print("read")
except EdgeflError as error:
    print(error.message, "|", error.hint)
print(peak_mb() - before)
"""


def peak(path: Path, most_mb: int | None = None) -> tuple[str, float]:
    """What reading said, and the MB that it took."""
    limit = {} if most_mb is None else {"EDGEFL_MAX_ARRAY_MB": str(most_mb)}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, env={**os.environ, **limit}
    )
    assert done.returncode == 0, done.stderr
    said, mb = done.stdout.splitlines()
    return said, float(mb)


@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors"])
def test_what_is_too_large_is_refused_unread(bundle: Path, name: str) -> None:
    """Sparse: 2 GiB that take no room on the disk."""
    with open(bundle / name, "r+b") as file:
        file.truncate(2**31)
    said, mb = peak(bundle)
    assert name in said and "2147483648 bytes" in said
    assert (name != "manifest.json" or f"at most {MAX_MANIFEST_BYTES}" in said) and mb < 50


def zeros(size_mb: int) -> bytes:
    """Deflated (zlib), so many MB of zeros."""
    packer, piece = zlib.compressobj(1), bytes(10**6)
    return b"".join(packer.compress(piece) for _ in range(size_mb)) + packer.flush()


def bomb(folder: Path, kind: str, size_mb: int) -> Path:
    if kind == "npz":
        path = folder / "bomb.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
            with made.open("x.npy", "w") as file:
                file.write(npy(described(shape=f"({size_mb}, 1000000)")))
                for _ in range(size_mb):
                    file.write(bytes(10**6))
            made.writestr("y.npy", npy(described(shape=f"({size_mb},)"), bytes(size_mb)))
        return path
    if kind == "a header in an npz":  # NumPy's reader takes all of it before it says that it is too long
        path = folder / "bomb.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
            with made.open("x.npy", "w") as file:
                file.write(npy(b"", b"", b"\x02\0", length=size_mb * 10**6))
                for _ in range(size_mb):
                    file.write(b" " * 10**6)
            made.writestr("y.npy", npy(described(shape="(1,)"), b"\0"))
        return path
    if kind == "idx":
        head = b"\0\0\x08\x02" + struct.pack(">2I", size_mb, 10**6)
        with gzip.open(folder / "a-images.idx.gz", "wb", compresslevel=1) as file:
            file.write(head)
            for _ in range(size_mb):
                file.write(bytes(10**6))
        (folder / "a-labels.idx").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", size_mb) + bytes(size_mb))
        return folder / "a-images.idx.gz"
    return images(folder, png(10_000, size_mb * 100, zeros(size_mb)))


@pytest.mark.parametrize("kind", ["npz", "a header in an npz", "idx", "png"])
def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path, kind: str) -> None:
    """A few hundred KB that say they are 300 MB, of which 100 are allowed; as a PNG 80, of which 20 are."""
    path = bomb(tmp_path, kind, 80 if kind == "png" else 300)
    said, mb = peak(path, 20 if kind == "png" else 100)
    assert mb < 20, said
    if kind != "a header in an npz":
        assert "MB in memory; at most" in said and "set EDGEFL_MAX_ARRAY_MB" in said
    else:
        assert "a header of 300000000 bytes" in said


def test_what_the_limit_allows_is_read_in_little_more_than_its_own_memory(tmp_path: Path) -> None:
    said, mb = peak(bomb(tmp_path, "npz", 100), 100)
    assert said == "read" and mb < 130


def test_what_is_as_large_as_its_file_is_no_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFL_MAX_ARRAY_MB", "0")
    np.savez(tmp_path / "a.npz", x=np.zeros((10, 10), np.float32), y=np.arange(10))
    assert len(read_splits(tmp_path / "a.npz").train) == 10
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((10, 1000), np.float32), y=np.arange(10))
    assert "at most 0 are unpacked" in refused(DataError, "a.npz", lambda: read_splits(tmp_path / "a.npz"))
    monkeypatch.setenv("EDGEFL_MAX_ARRAY_MB", "much")
    assert "expected a whole number" in refused(DataError, "'much'", lambda: read_splits(tmp_path / "a.npz"))


def test_labels_of_which_one_is_long_take_no_more_than_they_are(tmp_path: Path) -> None:
    """As a NumPy array of texts, 1 MB would be 4 * 100,000 * 100,000 bytes."""
    (tmp_path / "a.csv").write_text(f"1,{'x' * 100_000}\n" + "1,y\n" * 100_000)
    said, mb = peak(tmp_path / "a.csv")
    assert said == "read" and mb < 100
