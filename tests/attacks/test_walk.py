"""A program that reads the device's disk, or is not what it seems, never reaches a runtime."""

from __future__ import annotations

import base64
import json
import runpy
import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from processes import Process
from toy import write_regression

import edgefl_broker
from edgefl import bundle as bundles
from edgefl.address import Address
from edgefl.bundle import Bundle, describe
from edgefl.cli import main
from edgefl.errors import BundleError
from edgefl.manifest import PORTABLE, Parity, Target, parse_manifest
from edgefl.mqtt import Connection
from edgefl.onnx_session import make_session
from edgefl.replay import Runner
from edgefl.training_artifacts import ENGINE, FILES
from edgefl.transport import Received
from edgefl.trust import onnx_walk
from edgefl.trust.onnx_walk import ENGINES, OPERATORS, check_graph
from edgefl_device.engines.runtime import Runtime
from edgefl_device.engines.training_runtime import TrainingRuntime

VECTORS = Path(__file__).parents[1] / "vectors"
MADE = runpy.run_path(str(VECTORS / "make_walk.py"))
HELD: dict[str, Any] = json.loads((VECTORS / "walk.json").read_text())
SECRET = np.arange(16, dtype=np.float32) + 123.456  # the larger of this and zero

# Operators of opset 18 that programs may not have.
LEFT_OUT = {
    "random": {
        "Bernoulli",
        "Dropout",  # random in training mode, and nothing outside of it
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    },
    "of text": {"StringNormalizer", "TfIdfVectorizer"},
    "perhaps without a value": {"Optional", "OptionalGetElement", "OptionalHasElement"},
    "deprecated": {"GroupNormalization", "Scatter", "Upsample"},
}


def file_of(entry: dict[str, Any]) -> bytes:
    return base64.b64decode(entry["file"])


# The walk


@pytest.mark.parametrize("entry", HELD["refused"], ids=lambda e: f"{e['engine']}: {e['name']}")
def test_what_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(BundleError) as refused:
        check_graph(file_of(entry), engine=entry["engine"], where="program 'train'")
    message = refused.value.message
    assert message.startswith("program 'train' is refused: ") and entry["why"] in message
    assert message.isprintable() and len(message) < 250


@pytest.mark.parametrize("entry", HELD["accepted"], ids=lambda e: f"{e['engine']}: {e['name']}")
def test_what_is_let_pass(entry: dict[str, Any]) -> None:
    check_graph(file_of(entry), engine=entry["engine"])


def test_the_vectors_are_what_their_script_makes() -> None:
    assert MADE["written"]() == (VECTORS / "walk.json").read_text()


def test_every_operator_of_the_operator_set_is_allowed_or_left_out_by_name() -> None:
    newest: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= onnx_walk.OPSET:
            newest[schema.name] = max(newest.get(schema.name, 0), schema.since_version)
    left_out = set().union(*LEFT_OUT.values())
    assert OPERATORS | left_out == set(newest)
    assert not OPERATORS & left_out


def test_every_field_of_the_table_is_onnxs_own() -> None:
    """Name, number and wire type; `TensorType` is `TypeProto.Tensor` there."""
    wires = {1: 5, 2: 5, 3: 0, 4: 0, 5: 0, 9: 2, 11: 2, 12: 2, 14: 0}  # descriptor's type -> wire type
    nested = {"TensorType": "Tensor", "SequenceType": "Sequence"}
    other = {"OperatorSet": "OperatorSetIdProto", "Shape": "TensorShapeProto"}
    for row in onnx_walk.TABLE:
        if row.message in nested:
            described = getattr(onnx.TypeProto, nested[row.message]).DESCRIPTOR
        elif row.message == "Dimension":
            described = onnx.TensorShapeProto.Dimension.DESCRIPTOR
        else:
            described = getattr(onnx, other.get(row.message, f"{row.message}Proto")).DESCRIPTOR
        field = described.fields_by_number[row.number]
        packed = field.name in ("float_data", "int32_data", "int64_data")
        assert (row.name, row.wire) == (field.name, 2 if packed else wires[field.type])
        if row.times != "never" and not packed:
            assert (row.times == "many") == isinstance(getattr(described._concrete_class(), field.name), type_of_many())


def type_of_many() -> tuple[type, ...]:
    graph = onnx.GraphProto()
    return type(graph.node), type(onnx.NodeProto().input)


def test_the_engines_are_those_that_there_are() -> None:
    assert list(ENGINES) == [PORTABLE, ENGINE]


def program_of(*parts: bytes) -> bytes:
    return bytes(MADE["number"](1, 9) + MADE["part"](7, *parts) + MADE["IMPORT"])


RELU = MADE["node"]("Relu", "x", "x")


def test_the_bounds_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    part, number, tensor = MADE["part"], MADE["number"], MADE["tensor"]
    kilobyte = part(5, tensor("w", part(9, bytes(1024)), dims=(256,)))
    inside = part(1, part(4, "Constant"), part(5, part(1, "a"), kilobyte, number(20, 4)))
    numbers = part(1, part(4, "Constant"), part(5, part(1, "a"), number(8, *[1] * 128), number(20, 7)))
    monkeypatch.setattr(onnx_walk, "MOST_NODES", 10)
    monkeypatch.setattr(onnx_walk, "MOST_FIELDS", 1000)
    monkeypatch.setattr(onnx_walk, "LARGEST_CONSTANTS_BYTES", 2047)
    check_graph(program_of(*[RELU] * 10, kilobyte))
    for data, why in (
        (program_of(kilobyte, kilobyte), "more than 2,047 bytes of constants"),
        (program_of(inside, kilobyte), "more than 2,047 bytes of constants"),
        (program_of(numbers, kilobyte), "more than 2,047 bytes of constants"),
        (program_of(*[RELU] * 11), "more than 10 nodes"),
        (program_of(part(1, part(4, "Relu"), b"\x0a\x00" * 1000)), "more than 1,000 fields"),
        (MADE["nested"](400), "messages more than 40 deep"),
    ):
        with pytest.raises(BundleError, match=why):
            check_graph(data)


@pytest.mark.parametrize("what", ["tensor", "fields", "zeros"])
def test_a_large_file_takes_seconds(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_walk, "MOST_FIELDS", 100_000)  # of ten times as many: the rest is not looked at
    part, tensor = MADE["part"], MADE["tensor"]
    if what == "tensor":
        data = program_of(part(5, tensor("w", part(9, bytes(25 * 2**20)), dims=(25 * 2**18,))))
    elif what == "fields":  # the least that there are, as many as fit
        data = program_of(part(1, b"\x0a\x00" * (onnx_walk.LARGEST_BYTES // 2 - 100)))
    else:
        data = bytes(100 * 2**20)
    begin = time.process_time()
    why = {"tensor": "of constants", "fields": "100,000 fields", "zeros": "104,857,600 bytes; at most 33,554,432"}
    with pytest.raises(BundleError, match=why[what]):
        check_graph(data)
    assert time.process_time() - begin < 10  # a fifth of a second, on a machine with nothing else to do


def test_what_was_walked_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_walk, "MOST_NODES", 2000)  # to count memory takes its time
    data = program_of(
        *[RELU] * 2000, MADE["part"](5, MADE["tensor"]("w", MADE["part"](9, bytes(2**20)), dims=(2**18,)))
    )
    tracemalloc.start()
    check_graph(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000


@given(st.data())
def test_what_passes_is_read_alike_by_onnx(data: st.DataObject) -> None:
    """Some bytes of a program are changed. What the walk lets pass then, onnx reads, and passes over nothing of it:
    what it writes again is as long."""
    changed = bytearray(data.draw(st.sampled_from(SOUND)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        new = data.draw(st.one_of(st.binary(max_size=3), st.sampled_from(PIECES)))
        changed[at : at + data.draw(st.integers(0, 3))] = new
    try:
        check_graph(bytes(changed))
    except BundleError:
        return
    model = onnx.load_from_string(bytes(changed))
    assert len(model.SerializeToString()) == len(changed)
    assert b"data_location" not in str(model).encode() and "external_data" not in str(model)


SOUND = [data for data in MADE["ACCEPTED"].values() if len(data) < 2000]
PIECES = [MADE["OUTSIDE"], MADE["LOCATION"], MADE["RAW"], MADE["IMPORT"], MADE["FOREIGN"], b"\x80", b"\x00"]


# The doors


def with_program(bundle: Bundle, out: Path, name: str, data: bytes) -> Path:
    """A copy of the bundle whose program is this file, its hash in the manifest right."""
    shutil.copytree(bundle.path, out)
    program = bundle.manifest.program(name)
    (out / program.file.path).write_bytes(data)
    changed = msgspec.structs.replace(program, file=describe(program.file.path, data))
    manifest = msgspec.structs.replace(bundle.manifest, programs={**bundle.manifest.programs, name: changed})
    (out / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return out


def stealing(bundle: Bundle, location: str, offset: int) -> bytes:
    """The program `train`, with 64 bytes of a file as the next value of w."""
    model = onnx.load_from_string(bundle.program_bytes("train"))
    stolen = TensorProto(name="stolen", data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", "64")):
        stolen.external_data.add(key=key, value=value)
    model.graph.initializer.append(stolen)
    last = next(node for node in model.graph.node if node.output[0] == "w_next")
    last.CopyFrom(helper.make_node("Max", ["stolen", "w"], ["w_next"]))
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_regression(tmp_path_factory.mktemp("wide") / "wide.bundle", width=16)


@pytest.fixture
def evil(wide: Bundle, tmp_path: Path) -> Path:
    return with_program(wide, tmp_path / "evil.bundle", "train", stealing(wide, "secret.bin", 0))


REFUSAL = "program 'train' ('programs/train.onnx') is refused: external data (Tensor.external_data, at byte "


@pytest.mark.parametrize(
    "command",
    [["inspect"], ["verify"], ["doctor"], ["model", "{weights}"]],
    ids=lambda command: command[0],
)
def test_no_command_takes_such_a_bundle(command: list[str], evil: Path) -> None:
    arguments = [command[0], str(evil), *(part.format(weights=evil / "weights.safetensors") for part in command[1:])]
    done = CliRunner().invoke(main, arguments, prog_name="edgefl")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.exit_code == 3 and len(errors) == 1 and REFUSAL in errors[0], done.output


def test_no_aggregator_offers_such_a_bundle(evil: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f'name = "toy"\nbundle = "{evil}"\n')
    command = ["aggregate", str(tmp_path / "run.toml"), "--broker", "mqtt://127.0.0.1:1"]
    done = CliRunner().invoke(main, command, prog_name="edgefl")
    assert done.exit_code == 3 and REFUSAL in done.stderr


def test_no_runtime_is_given_such_a_program_even_where_nobody_read_the_bundle(
    evil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(SECRET.tobytes())
    manifest_bytes = (evil / "manifest.json").read_bytes()
    unread = Bundle(evil, parse_manifest(manifest_bytes, where="here"), manifest_bytes)
    runtime = Runtime(unread)
    inputs = {name: np.ones((), np.float32) for name in ("learning_rate", "momentum")}
    with pytest.raises(BundleError, match="external data"):
        runtime.step("train", {"x": np.ones((1, 16), np.float32), "y": np.ones(1, np.float32), **inputs})
    assert runtime.state(["w"])["w"].any() == np.False_


def test_one_file_is_walked_once(regression: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    walked = []
    monkeypatch.setattr(bundles, "check_graph", lambda data, **about: walked.append(about["where"]))
    read = bundles.read(regression.path)
    read.program_bytes("train")
    Runtime(read)._session("train", read.manifest.program("train"))
    assert walked == ["program 'train' ('programs/train.onnx')", "program 'evaluate' ('programs/evaluate.onnx')"]


@pytest.mark.parametrize("name", FILES[:3])
def test_files_of_the_training_engine_are_walked(name: str, regression: Bundle, tmp_path: Path) -> None:
    training = MADE["ACCEPTED_FOR_TRAINING"]
    files = dict.fromkeys(FILES, training["its accumulator"]) | {"checkpoint": b"of tensors alone"}
    manifest = msgspec.structs.replace(
        regression.manifest, targets={ENGINE: Target((), {"train": Parity("by hand", 0.0, {})})}
    )

    def made(out: str, files: dict[str, bytes]) -> Path:
        programs = {one: regression.program_bytes(one) for one in manifest.programs}
        golden = {one: regression.golden(one) for one in programs}
        path = tmp_path / out
        bundles.write(
            path, manifest, weights=regression.weights(), programs=programs, golden=golden, targets={ENGINE: files}
        )
        return path

    assert bundles.read(made("sound", files), engine=ENGINE).target_folder(ENGINE, FILES) == tmp_path / "sound" / ENGINE
    evil = {**files, name: MADE["EXTERNAL_DATA"]["external data in a Constant"][0]}
    with pytest.raises(BundleError, match=f"'{ENGINE}/{name}' is refused: external data"):
        made("evil", evil)
    assert bundles.read(tmp_path / "evil", engine=PORTABLE)  # which is not given these
    with pytest.raises(BundleError, match=f"'{ENGINE}/{name}' is refused: external data"):
        bundles.read(tmp_path / "evil", engine=ENGINE)
    lacking = bundles.read(made("lacking", {one: data for one, data in files.items() if one != name}))
    with pytest.raises(BundleError, match=f"has no {ENGINE}/{name} for {ENGINE}"):
        TrainingRuntime(lacking)  # else it would load whatever lies at this path


# onnxruntime


def test_what_a_runtime_would_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here if no onnxruntime read external data of a model in memory; 1.20 and 1.32 do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / MADE["SECRET"]).write_bytes(SECRET.tobytes())
    read = {}
    for name, (data, _) in MADE["EXTERNAL_DATA"].items():
        try:
            [y] = Runner(data).run({"x": np.zeros(16, np.float32)}).values()
        except BundleError:
            continue
        read[name] = np.isin(y, SECRET).all()
    if not any(read.values()):
        pytest.skip(f"onnxruntime {onnxruntime.__version__} reads no external data here")
    assert read["external data in an initializer"] and len([name for name in read if read[name]]) >= 10, read


def test_a_session_takes_no_other_format_and_no_settings_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    sound, other = (
        MADE["ACCEPTED"]["an initializer"],
        MADE["REFUSED"]["a program that says ORTM where that format does"][0],
    )
    config = MADE["entry"](14, "ort_config", "{ nothing that can be read")
    make_session(sound + config)  # not looked at
    make_session(other)  # read as what it is, else "ORT model verification failed"


def test_nothing_is_computed_while_a_session_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of two matrices of ones, each of 64 GB: to begin with it would fail."""
    node, part, attribute, number = MADE["node"], MADE["part"], MADE["attribute"], MADE["number"]
    shape = part(9, np.array([2**17, 2**17], np.int64).tobytes())
    data = program_of(
        part(5, MADE["tensor"]("shape", shape, dims=(2,), kind=7)),
        node("ConstantOfShape", "shape", "large"),
        node("MatMul", "large large", "product"),
        node("ReduceSum", "product", "w", attribute("keepdims", 2, number(3, 0))),
        MADE["MAX"],
        MADE["INPUT"],
        MADE["OUTPUT"],
    )
    check_graph(data)
    begin = time.process_time()
    make_session(data)
    assert time.process_time() - begin < 5


# A device


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    running: list[Process] = []

    def start(*arguments: Any, **options: Any) -> Process:
        running.append(Process(*arguments, **options))
        return running[-1]

    yield start
    for process in running:
        if process.child.poll() is None:
            process.child.kill()
        process.child.communicate()


# An edgefl as it would be without the walk.
UNGUARDED = (
    "-c",
    "import edgefl.bundle as b; b.check_graph = lambda *a, **k: None; from edgefl.cli import main; main()",
)


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "as it would be without the walk"])
def test_a_device_sends_no_file(guarded: bool, wide: Bundle, tmp_path: Path, start: Callable[..., Process]) -> None:
    """The aggregator is hostile: it offers a program that reads the device's own data."""
    data = tmp_path / "parts" / "pi-1.npz"
    data.parent.mkdir()
    np.savez(data, x=SECRET.reshape(1, 16).repeat(2, 0), y=np.ones(2, np.float32))
    secret = SECRET.tobytes()
    offset = data.read_bytes().index(secret)
    evil = with_program(wide, tmp_path / "evil.bundle", "train", stealing(wide, "parts/pi-1.npz", offset))
    (tmp_path / "run.toml").write_text(
        f'name = "toy"\nbundle = "{evil}"\n[method]\nrounds = 1\nlearning_rate = 0.1\n[round]\nmin_devices = 1\n'
    )
    with edgefl_broker.start() as broker:
        seen = Connection(Address.parse(broker.url), "seen")
        seen.subscribe("#")
        seen.connect()
        start(tmp_path, "aggregate", "run.toml", "--broker", broker.url, entry=UNGUARDED)
        device = start(
            tmp_path,
            *("device", "--broker", broker.url, "--name", "pi-1", "--data", str(data)),
            entry=("-m", "edgefl") if guarded else UNGUARDED,
        )
        code, _, err = device.end()
        seen.publish("the end", b"")
        payloads = []
        while not isinstance(event := seen.inbox.get(timeout=20), Received) or event.topic != "the end":
            if isinstance(event, Received):
                payloads.append(event.payload)
        seen.close()
    sent = any(secret in payload for payload in payloads)
    if not guarded:
        if not sent:
            pytest.skip(f"onnxruntime {onnxruntime.__version__} reads no external data here")
        return
    errors = [line for line in err.splitlines() if "error: " in line]
    assert code == 3 and len(errors) == 1 and REFUSAL in errors[0], err
    assert not sent
