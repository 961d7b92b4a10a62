"""The proven programs rewritten as the three graphs that onnxruntime-training's API drives.

Nothing is left for that runtime to differentiate: the training model is the `train` program, which holds its own
backward pass, with the runtime's gradient buffers in place of the parameters' next values. So the layers that its
gradient builder lacks (GroupNorm, InstanceNorm, HardSwish ...) or gets wrong (BatchNorm) make no difference.

Names of buffers and the order of inputs are what that API looks for: first the user's, then state, then buffers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx.compose
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from edgefl.errors import LoweringError
from edgefl.names import LEARNING_RATE
from edgefl.tensors import Array

PORTABLE = "leave out --target: the portable programs run on every current onnxruntime"
MOST = 2**24  # every integer below is exact in float32
_DOMAIN = "com.microsoft"
_RESET = "lazy_reset_grad"
_ALWAYS = "edgefl.always"


def as_stored(state: Mapping[str, Array], written: Iterable[str]) -> dict[str, Array]:
    """The state as the checkpoint holds it: integers that training changes (step counters) are float32, since the
    operator that changes a tensor in its place knows only floats.

    Raises LoweringError for a number that float32 cannot hold.
    """
    stored = dict(state)
    for name in written:
        stored[name] = state[name].astype(np.float32)
        if not np.array_equal(stored[name], state[name]) or (
            state[name].dtype != np.float32 and np.abs(stored[name]).max(initial=0) >= MOST
        ):
            raise LoweringError(f"{name!r}, which training changes, holds numbers beyond float32", hint=PORTABLE)
    return stored


def training_model(
    train: bytes, writes: Mapping[str, str], trained: Collection[str], state: Mapping[str, Array]
) -> bytes:
    """Forward and backward of the program `train`, whose `writes` are state tensor -> output with its next value.

    What every optimizer does to a parameter is `parameter - learning_rate * direction`. The direction goes to the
    parameter's gradient buffer, for `optimizer_model`. The other tensors that training changes (BatchNorm's
    statistics, optimizer moments) are changed in their place, so an application has no part in it.

    Raises LoweringError for a tensor that cannot be changed in its place.
    """
    model = onnx.load_from_string(train)
    graph = model.graph
    made = {output: node for node in graph.node for output in node.output}
    user = [value for value in graph.input if value.name not in state and value.name != LEARNING_RATE]
    outputs = [value for value in graph.output if value.name not in writes.values()]
    before: list[NodeProto] = []
    after: list[NodeProto] = []
    buffers: list[ValueInfoProto] = []
    flags: list[ValueInfoProto] = []
    for name, value in writes.items():
        buffer, overwrite, flag = name, _ALWAYS, f"{name}_grad.accumulation.out"
        if name in trained:
            buffer, overwrite = f"{name}_grad.accumulation.buffer", _RESET
            buffers.append(helper.make_tensor_value_info(buffer, TensorProto.FLOAT, state[name].shape))
            last = made[value]
            if last.op_type == "Sub" and last.input[0] == name:
                value = last.input[1]  # the learning rate is 1 here
            else:  # AdamW shrinks the parameter first
                after.append(helper.make_node("Sub", [name, value], [f"edgefl.direction.{name}"]))
                value = f"edgefl.direction.{name}"
        else:
            counter = state[name].dtype != np.float32
            _check_read_before(name, value, graph, made, copied=counter)
            if counter:
                integer, kind = f"edgefl.integer.{name}", helper.np_dtype_to_tensor_dtype(state[name].dtype)
                _replace_reads(graph, name, integer)
                before.append(helper.make_node("Cast", [name], [integer], to=kind))
                after.append(helper.make_node("Cast", [value], [f"edgefl.float.{name}"], to=TensorProto.FLOAT))
                value = f"edgefl.float.{name}"
        after.append(helper.make_node("InPlaceAccumulatorV2", [buffer, value, overwrite], [flag], domain=_DOMAIN))
        flags.append(helper.make_tensor_value_info(flag, TensorProto.BOOL, [1]))
    nodes = _live([*before, *graph.node, *after], {value.name for value in (*outputs, *flags)})
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    reset = helper.make_tensor_value_info(_RESET, TensorProto.BOOL, [1])
    graph.input.extend([*user, *_inputs(as_stored(state, writes)), *buffers, reset])
    graph.output.extend([*outputs, *flags])
    graph.initializer.append(helper.make_tensor(LEARNING_RATE, TensorProto.FLOAT, [], [1.0]))
    graph.initializer.append(helper.make_tensor(_ALWAYS, TensorProto.BOOL, [1], [True]))
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return bytes(model.SerializeToString())


def eval_model(evaluate: bytes, predict: bytes, stored: Mapping[str, Array]) -> bytes:
    """The programs `evaluate` and `predict` in one graph: loss, metrics, and the model's output, which the API's
    `export_model_for_inferencing` wants. What both compute the runtime computes once."""
    model, other = onnx.load_from_string(evaluate), onnx.load_from_string(predict)
    other = onnx.compose.add_prefix(other, "predict.", rename_inputs=False, rename_outputs=False)
    graph = model.graph
    user = [value for value in graph.input if value.name not in stored]
    graph.node.extend(other.graph.node)
    graph.initializer.extend(other.graph.initializer)
    graph.output.extend(other.graph.output)
    del graph.input[:]
    graph.input.extend([*user, *_inputs(stored)])
    return bytes(model.SerializeToString())


def optimizer_model() -> bytes:
    """parameter -= learning_rate * gradient buffer, in the form that the API asks for."""
    names = ("params", "gradients", "first_order_moments")  # the last is wanted, though nothing reads it
    sequences = [helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None) for name in names]
    rate = helper.make_tensor_value_info(LEARNING_RATE, TensorProto.FLOAT, [1])
    step = helper.make_tensor_value_info("step", TensorProto.INT64, [1])
    done = helper.make_tensor_value_info("update_completed", TensorProto.BOOL, [1])
    node = helper.make_node("SGDOptimizerV2", [LEARNING_RATE, "params", "gradients"], [done.name], domain=_DOMAIN)
    graph = helper.make_graph([node], "optimizer", [rate, step, *sequences], [done])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(_DOMAIN, 1)]
    # IR 9: from 11 on, which newer versions of onnx write by default, 1.19.2 refuses the file.
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


def _inputs(tensors: Mapping[str, Array]) -> list[ValueInfoProto]:
    """State as graph inputs; the API wants all of it in both graphs, in the checkpoint's order."""
    return [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(tensors[name].dtype), tensors[name].shape)
        for name in sorted(tensors)
    ]


def _check_read_before(
    name: str, value: str, graph: GraphProto, made: Mapping[str, NodeProto], *, copied: bool
) -> None:
    """Raises LoweringError unless all that reads the tensor comes before its next value: leads to it, or (`copied`)
    reads the same copy as something that does."""
    seen: set[int] = set()
    left = [value]
    while left:
        node = made.get(left.pop())
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            left.extend(_reads(node))
    before = [id(node) in seen for node in graph.node if name in _reads(node)]
    if before and not (any(before) if copied else all(before)):
        raise LoweringError(
            f"training reads the state tensor {name!r} apart from changing it, which onnxruntime-training cannot do in "
            "its place",
            hint=PORTABLE,
        )


def _reads(node: NodeProto) -> set[str]:
    """What a node and the graphs inside it read."""
    inside = {name for graph in _bodies(node) for child in graph.node for name in _reads(child)}
    return {*node.input, *inside}


def _replace_reads(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
        for body in _bodies(node):
            _replace_reads(body, old, new)


def _bodies(node: NodeProto) -> list[GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _live(nodes: list[NodeProto], wanted: set[str]) -> list[NodeProto]:
    """The nodes that lead to the wanted values."""
    kept, wanted = [], set(wanted)
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= _reads(node)
    return kept[::-1]
