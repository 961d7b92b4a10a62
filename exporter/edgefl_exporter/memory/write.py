"""A program with copies as an ONNX file."""

from __future__ import annotations

import numpy as np
import onnx

from edgefl_exporter.memory.recompute import Recomputed


def write(data: bytes, program: Recomputed) -> bytes:
    """The file `data`, with the nodes of `program` in place of its own."""
    model = onnx.load_from_string(data)
    originals = {name: node for node in model.graph.node for name in node.output if name}
    nodes = []
    for number, node in enumerate(program.graph.nodes):
        made = next(name for name in node.outputs if name)
        source = originals.get(program.origin.get(made, made))
        proto = onnx.NodeProto()
        if source is not None:
            proto.CopyFrom(source)
            del proto.input[:], proto.output[:]
            proto.input.extend(node.inputs)
            proto.output.extend(node.outputs)
        else:  # of a tie
            proto = onnx.helper.make_node(node.kind, node.inputs, node.outputs, **node.attributes)
        proto.name = f"n{number}"
        nodes.append(proto)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(numbers, np.int64), name) for name, numbers in program.constants.items()
    )
    written: bytes = model.SerializeToString(deterministic=True)
    return written
