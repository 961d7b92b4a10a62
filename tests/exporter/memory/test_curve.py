"""What is made again, by hand: a program of nine nodes, in the order that the runtime takes."""

from __future__ import annotations

import numpy as np
import pytest

from edgefl.costs import alive_at_peak, peak_bytes
from edgefl.manifest import File, Input, Output, Parity, Program
from edgefl.shapes import Graph, Node, Tensor
from edgefl_exporter.memory.curve import curve
from edgefl_exporter.memory.order import runtime_order
from edgefl_exporter.memory.recompute import recompute
from edgefl_exporter.memory.training import take_apart

FILE = File("", "", 0)
ROW = Tensor(np.dtype(np.float32), (0, 1000), (1.0, 0.0))  # of 4,000 bytes for each example
PROGRAM = Program(
    file=FILE,
    inputs=(
        Input("x", "float32", ("batch", 1000), "features"),
        Input("y", "float32", ("batch", 1000), "labels"),
    ),
    outputs=(Output("loss", "float32", (), "mean"),),
    reads=("w",),
    writes={"w": "next"},
    parity=Parity("", 0.0, {}),
    golden=FILE,
)


def node(kind: str, inputs: str, output: str) -> Node:
    return Node(kind, tuple(inputs.split()), (output,), {})


def graph(tensor: Tensor = ROW) -> Graph:
    """Four layers whose results the backward reads, each made of `tensor`; nobody knows GlobalMul."""
    nodes = (
        node("MatMul", "x w", "a"),
        node("Relu", "a", "b"),
        node("Softplus", "b", "c"),
        node("Sigmoid", "c", "d"),
        node("ReduceMean", "d", "loss"),
        node("Sub", "y d", "g"),
        node("GlobalMul", "g c", "h"),
        node("GlobalMul", "h b", "i"),
        node("ReduceSum", "i a", "next"),
    )
    scalar = Tensor(np.dtype(np.float32), (), ())
    weight = Tensor(np.dtype(np.float32), (1000, 1000), (0.0, 0.0))
    tensors = dict.fromkeys("xyabcdghi", tensor) | {"w": weight, "next": weight, "loss": scalar}
    return Graph(nodes, frozenset({"x", "y", "w"}), frozenset({"loss", "next"}), tensors, None)


def test_saved_is_what_the_backward_reads() -> None:
    training = take_apart(graph(), PROGRAM, 2)
    assert training.saved == ("a", "b", "c", "d")
    assert [name for _, name in training.gradients] == ["g", "h", "i"]
    assert training.readers["c"] == (6,)


def test_a_copy_waits_for_the_gradient_that_was_made_last() -> None:
    made = recompute(take_apart(graph(), PROGRAM, 2), {"c"})
    assert made is not None
    assert [(n.kind, n.inputs, n.outputs) for n in made.graph.nodes[6:11]] == [
        ("Shape", ("g",), ("b_rows",)),
        ("Concat", ("b_rows", "is_1000"), ("b_shape",)),
        ("Reshape", ("b", "b_shape"), ("b_kept",)),
        ("Softplus", ("b_kept",), ("c_again",)),
        ("GlobalMul", ("g", "c_again"), ("h",)),
    ]
    assert made.constants == {"is_1000": (1000,)}
    assert made.origin == {"c_again": "c"}
    assert [n.kind for n in made.copies] == ["Softplus"]


def test_a_copy_of_a_copy_needs_no_tie_of_its_own() -> None:
    made = recompute(take_apart(graph(), PROGRAM, 2), {"b", "c"})
    assert made is not None
    copies = {n.outputs[0]: n.inputs for n in made.copies}
    assert copies == {"b_again": ("a_kept",), "c_again": ("b_again",)}
    (reader,) = (n for n in made.graph.nodes if n.outputs == ("i",))
    assert reader.inputs == ("h", "b_again")  # one copy serves both


def test_rows_of_several_examples_are_scaled() -> None:
    tokens = Tensor(np.dtype(np.float32), (0, 10), (65.0, 0.0))
    wide = graph()
    wide = Graph(wide.nodes, wide.given, wide.outputs, {**wide.tensors, "b": tokens}, None)
    made = recompute(take_apart(wide, PROGRAM, 2), {"c"})
    assert made is not None
    kinds = [n.kind for n in made.graph.nodes]
    assert kinds.count("Mul") == kinds.count("Div") == 1
    assert {(65,), (1,), (10,)} == set(made.constants.values())


def test_what_has_no_row_for_each_example_cannot_wait() -> None:
    fixed = Tensor(np.dtype(np.float32), (1000,), (0.0,))
    assert recompute(take_apart(graph(fixed), PROGRAM, 2), {"c"}) == recompute(
        take_apart(graph(fixed), PROGRAM, 2), set()
    )


def test_the_curve_by_hand() -> None:
    plain, first, *more = curve(take_apart(graph(), PROGRAM, 2))
    # The loss is read by nobody, so it is made last and d stays: a, b, c, d, g and h, of 8,000 bytes each.
    assert plain.peak_bytes == 6 * 8000
    # Without b there are a, c, d, g and h, and later a, d, h, the copy and i. Copying a or c would not help more,
    # and cost more: b's copy reads 8,000 bytes and writes as many, at 4 GB/s.
    assert first.peak_bytes == 5 * 8000
    assert first.chosen == {"b"}
    assert first.added_s == pytest.approx(4e-6)
    smooth = [plain.smooth, first.smooth, *(point.smooth for point in more)]
    assert smooth == sorted(smooth, reverse=True)


def test_alive_at_the_peak() -> None:
    plain = graph()
    alive = alive_at_peak(plain, 2)
    assert sum(alive.values()) == peak_bytes(plain, 2)


def test_the_runtime_goes_depth_first_and_takes_what_is_later_in_the_file_first() -> None:
    nodes = [
        node("Relu", "x", "early"),  # read by the last alone
        node("Exp", "x", "a"),
        node("Exp", "a", "out"),
        node("Neg", "x", "late"),
        node("Add", "early late", "sum"),
    ]
    assert [n.outputs[0] for n in runtime_order(nodes)] == ["late", "early", "sum", "a", "out"]


@pytest.mark.parametrize("batch", [1, 8])
def test_sizes_are_those_of_the_batch(batch: int) -> None:
    assert take_apart(graph(), PROGRAM, batch).sizes["a"] == 4000 * batch
