"""Bundles whose programs are not what an exporter writes, hashes and all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from edgefl import bundle as bundles
from edgefl.bundle import Bundle


def with_program(bundle: Bundle, out: Path, name: str, change: Callable[[onnx.ModelProto], None]) -> Bundle:
    """A bundle like `bundle`, hashes and all, whose program `name` was changed."""
    manifest = bundle.manifest
    programs = {n: bundle.bytes_of(p.file) for n, p in manifest.programs.items()}
    model = onnx.load_from_string(programs[name])
    change(model)
    golden = {n: bundle.golden(n) for n in programs}
    programs[name] = model.SerializeToString()
    return bundles.write(out, manifest, weights=bundle.weights(), programs=programs, golden=golden)


def endless(model: onnx.ModelProto) -> None:
    """The weights go through a Loop of 2^40 turns before anything else happens."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_next"]),
            helper.make_node("Add", ["w_turn", "nothing"], ["w_turn_next"]),
        ],
        "turn",
        [value("turn", TensorProto.INT64, []), value("go_on", TensorProto.BOOL, []), value("w_turn", 1, None)],
        [value("go_on_next", TensorProto.BOOL, []), value("w_turn_next", 1, None)],
    )
    for node in model.graph.node:
        node.input[:] = ["w_after" if name == "w" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Loop", ["turns", "", "w"], ["w_after"], body=body))
    model.graph.initializer.append(helper.make_tensor("turns", TensorProto.INT64, [], [2**40]))
    model.graph.initializer.append(helper.make_tensor("nothing", TensorProto.FLOAT, [], [0.0]))
