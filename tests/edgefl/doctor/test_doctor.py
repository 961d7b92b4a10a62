"""The doctor's counts, by hand; its verdicts; its command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from edgefl.bundle import Bundle
from edgefl.cli import main
from edgefl.costs import multiply_adds, peak_bytes
from edgefl.doctor.devices import DEVICES, Device
from edgefl.doctor.diagnosis import count, judge, largest_batch, process_bytes, slower
from edgefl.doctor.speed import Speed
from edgefl.manifest import File, Input, Parity, Program
from edgefl.shapes import Graph, Node, Tensor, read_graph

NOTHING = File("", "", 0)
Shape = tuple[int | str, ...]


def one_node(kind: str, x: Shape, w: tuple[int, ...], **attributes: object) -> Graph:
    """The graph of one operator on features x and a state tensor w."""
    value = helper.make_tensor_value_info
    node = helper.make_node(kind, ["x", "w"], ["z"], **attributes)
    inputs = [value("x", TensorProto.FLOAT, x), value("w", TensorProto.FLOAT, w)]
    model = helper.make_model(
        helper.make_graph([node], "one", inputs, [value("z", TensorProto.FLOAT, None)]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    features = (Input("x", "float32", x, "features"),)
    program = Program(NOTHING, features, (), ("w",), {}, Parity("by hand", 0.0, {}), NOTHING)
    return read_graph(program, model.SerializeToString(), {"w": np.zeros(w, np.float32)})


@pytest.mark.parametrize(
    ("graph", "each"),
    [
        (one_node("Gemm", ("batch", 3), (3, 5)), 3 * 5),
        (one_node("Gemm", ("batch", 3), (5, 3), transB=1), 3 * 5),
        (one_node("MatMul", ("batch", 4, 3), (3, 5)), 4 * 3 * 5),
        (one_node("Conv", ("batch", 2, 6, 6), (4, 2, 3, 3)), 4 * (4 * 4) * 2 * (3 * 3)),  # 4 x 4 places
        (one_node("Conv", ("batch", 2, 6, 6), (4, 1, 3, 3), group=2), 4 * (4 * 4) * 1 * (3 * 3)),
        (one_node("Conv", ("batch", 2, 6, 6), (4, 2, 2, 2), strides=[2, 2]), 4 * (3 * 3) * 2 * (2 * 2)),
        # each of 2 x 3 x 3 inputs is spread over 4 channels of 2 x 2
        (one_node("ConvTranspose", ("batch", 2, 3, 3), (2, 4, 2, 2), strides=[2, 2]), 2 * 9 * 4 * 4),
        (one_node("Einsum", ("batch", 4, 3), (3, 5), equation="bij,jk->bik"), 4 * 3 * 5),
        (one_node("Add", ("batch", 3), (3,)), 0),
    ],
)
def test_multiply_adds_of_one_operator(graph: Graph, each: int) -> None:
    for batch in (1, 7, 32):
        assert multiply_adds(graph, batch) == each * batch


def test_a_program_with_one_batch_size_is_counted_at_that() -> None:
    graph = one_node("Gemm", (6, 3), (3, 5))
    assert graph.batch == 6 and multiply_adds(graph, 6) == 6 * 15


def graph(*nodes: tuple[str, str, str], outputs: str = "z") -> Graph:
    """Nodes as (kind, names read, names written), one letter each; x and w are given; tensors are [batch, 25]."""
    names = {letter for _, read, written in nodes for letter in read + written}
    return Graph(
        tuple(Node(kind, tuple(read), tuple(written), {}) for kind, read, written in nodes),
        frozenset("xw"),
        frozenset(outputs),
        {name: Tensor(np.dtype(np.float32), (0, 25), (1.0, 0.0)) for name in names},
        None,
    )


@pytest.mark.parametrize(
    ("nodes", "tensors"),
    [
        # a, then a and b, then b and c; z is an output and has its place already.
        ([("MatMul", "xw", "a"), ("MatMul", "aw", "b"), ("MatMul", "bw", "c"), ("MatMul", "cw", "z")], 2),
        # The same, but the last node needs a again.
        ([("MatMul", "xw", "a"), ("MatMul", "aw", "b"), ("MatMul", "bw", "c"), ("MatMul", "ca", "z")], 3),
        # Relu writes where it reads.
        ([("MatMul", "xw", "a"), ("Relu", "a", "b"), ("MatMul", "bw", "z")], 1),
        # Not where what it reads is needed afterwards ...
        ([("MatMul", "xw", "a"), ("Relu", "a", "b"), ("MatMul", "ba", "z")], 2),
        # ... nor over an input of the program.
        ([("Relu", "x", "a"), ("MatMul", "aw", "b"), ("MatMul", "bw", "z")], 2),
        # A reshape is the same memory, and keeps it alive.
        ([("MatMul", "xw", "a"), ("Reshape", "aw", "b"), ("MatMul", "bw", "c"), ("MatMul", "cb", "z")], 2),
        # A sum takes the place of its second operand where the first lives on.
        ([("MatMul", "xw", "a"), ("MatMul", "aw", "b"), ("Add", "ab", "c"), ("MatMul", "ca", "z")], 2),
        # What nobody reads dies at once.
        ([("MatMul", "xw", "a"), ("MatMul", "xw", "b"), ("MatMul", "bw", "z")], 1),
        ([("MatMul", "xw", "z")], 0),
    ],
)
def test_peak_counts_the_tensors_alive_at_once(nodes: list[tuple[str, str, str]], tensors: int) -> None:
    for batch in (1, 8):
        assert peak_bytes(graph(*nodes), batch) == tensors * batch * 25 * 4


SLOW = Device("a board", memory_mb=300, gflops=(2.0, 5.0), copy_gb_s=(1.0, 2.0))
HERE = Speed(gflops=100.0, copy_gb_s=10.0)


def test_a_step_is_slower_by_published_speeds_between_the_kindest_and_the_unkindest_reading() -> None:
    assert slower(SLOW, HERE, arithmetic=1.0) == (100 / 5, 100 / 2)
    assert slower(SLOW, HERE, arithmetic=0.0) == (10 / 2, 100 / 2)
    assert slower(SLOW, HERE, arithmetic=0.5) == (0.5 * 20 + 0.5 * 5, 50)
    assert slower(Device("as here", 300, (100, 100), (10, 10)), HERE, arithmetic=0.3) == (1.0, 1.0)


def test_a_verdict_says_whether_it_fits_how_long_and_what_to_change(regression: Bundle) -> None:
    costs, train = count(regression, examples=100)
    assert costs.parameters == 2 and costs.upload_bytes == {"float32": 8, "float16": 4}
    assert costs.state_bytes == 8 + 8 + 8  # w, its moment, an int64 counter
    assert costs.programs["evaluate"].multiply_adds == 2  # x w
    assert costs.programs["train"].multiply_adds == 4  # and x^T err
    verdict = judge("board", SLOW, regression, train, batch_size=32, examples=100, step_s=0.5, here=HERE)
    least, most = slower(SLOW, HERE, arithmetic=2 * 4 * 32 / 100e9 / 0.5)
    assert verdict.fits and verdict.advice == () and verdict.largest_batch == 1024
    assert verdict.epoch_s == pytest.approx((4 * 0.5 * least, 4 * 0.5 * most))  # 32 + 32 + 32 + 4 examples


def test_the_largest_batch_is_the_last_that_fits(regression: Bundle) -> None:
    _, train = count(regression, examples=100)
    room = process_bytes(regression, train, 500, 100)
    assert largest_batch(regression, train, 100, room) == 500
    small = Device("a small board", room / 1e6, (1, 1), (1, 1))
    verdict = judge("small", small, regression, train, batch_size=600, examples=100, step_s=1.0, here=HERE)
    assert not verdict.fits and verdict.advice == ("train with batches of at most 500 instead of 600",)


def test_too_many_examples_or_too_large_a_model(regression: Bundle) -> None:
    _, train = count(regression, examples=100)
    common = {"batch_size": 32, "examples": 1000, "step_s": 1.0, "here": HERE}
    room = process_bytes(regression, train, 1, 700) / 1e6
    verdict = judge("small", Device("", room, (1, 1), (1, 1)), regression, train, **common)  # type: ignore[arg-type]
    assert verdict.advice == ("keep at most 700 examples on the device instead of 1,000",)
    verdict = judge("tiny", Device("", 1, (1, 1), (1, 1)), regression, train, **common)  # type: ignore[arg-type]
    assert verdict.largest_batch == 0
    assert verdict.advice == ("choose a smaller model (edgefl zoo): not even a batch of 1 fits",)


def doctor(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["doctor", *arguments])
    return result.exit_code, result.stdout


def test_the_command_prints_tables_for_all_devices(regression: Bundle) -> None:
    code, text = doctor(str(regression.path))
    assert code == 0
    assert "2 parameters" in text and "upload per round: 8 B as float32, 4 B as float16" in text
    for name in DEVICES:
        assert sum(line.startswith(name) for line in text.splitlines()) == 1


def test_the_command_gives_one_json_object(regression: Bundle) -> None:
    code, text = doctor(str(regression.path), "--device", "pi-4", "--examples", "100", "--format", "json")
    found = json.loads(text)
    assert code == 0 and found["lowers"] and found["parameters"] == 2
    assert [row["batch_size"] for row in found["memory"]] == [1, 8, 16, 32, 64]
    assert found["programs"]["train"]["operators"]["MatMul"] == 2
    (verdict,) = found["devices"]
    assert verdict["device"] == "pi-4" and verdict["fits"]
    assert 0 < verdict["epoch_s"][0] < verdict["epoch_s"][1]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux")
def test_time_against_memory_begins_with_the_plain_program(regression: Bundle) -> None:
    _, text = doctor(str(regression.path), "--memory-curve", "--format", "json")
    plain, *_ = json.loads(text)["memory_curve"]
    assert plain["again"] == 0
    assert plain["counted_bytes"] > 0 and plain["grown_bytes"] > 0 and plain["step_s"] > 0


def test_a_bundle_that_does_not_fit_exits_1(regression: Bundle) -> None:
    code, text = doctor(str(regression.path), "--device", "pi-zero-2w", "--examples", "100000000")
    assert code == 1
    assert "pi-zero-2w: keep at most" in text


REFUSED = """
import torch
from torch import nn

class Bessel(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.special.i0(x))
"""


def test_a_model_that_does_not_lower_exits_3_and_says_for_each_program_why(tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text(REFUSED)
    code, text = doctor(f"{file}:Bessel", "--input", "4", "--format", "json")
    found = json.loads(text)
    assert code == 3 and not found["lowers"]
    assert found["programs"].keys() == {"train", "evaluate", "predict"}
    assert "operator aten.i0.default" in found["programs"]["predict"]["error"]
    assert found["programs"]["predict"]["hint"]


def test_what_is_no_model_is_refused_in_one_line() -> None:
    result = CliRunner().invoke(main, ["doctor", "nothing-here"])
    assert result.exit_code == 3
    assert result.stderr.splitlines()[0] == "error: 'nothing-here' is no bundle, FILE:OBJECT or zoo:NAME"
