"""A bundle made by hand: linear regression with momentum, whose every number can be checked on paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from edgefl import bundle as bundles
from edgefl.bundle import Bundle
from edgefl.data_contract import DataContract, Feature
from edgefl.manifest import FORMAT, File, Input, Manifest, Output, Parity, Program, StateTensor

NOTHING = File(path="", sha256="", size_bytes=0)
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def _model(nodes: list, inputs: list, outputs: list, constants: list) -> bytes:
    graph = helper.make_graph(nodes, "hand-made", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()


def _forward() -> list:
    """err = x w - y; loss = mean(err^2)"""
    return [
        helper.make_node("MatMul", ["x", "w"], ["predicted"]),
        helper.make_node("Sub", ["predicted", "y"], ["err"]),
        helper.make_node("Mul", ["err", "err"], ["squares"]),
        helper.make_node("ReduceMean", ["squares"], ["loss"], keepdims=0),
        helper.make_node("ReduceSum", ["squares"], ["total"], keepdims=0),
    ]


def _train(width: int) -> bytes:
    """moment' = momentum * moment + 2/n x^T err; w' = w - learning_rate * moment'; count' = count + 1"""
    value = helper.make_tensor_value_info
    nodes = [
        *_forward(),
        helper.make_node("Shape", ["y"], ["n"]),
        helper.make_node("Cast", ["n"], ["n_float"], to=FLOAT),
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0]),
        # As a column: onnxruntime 1.31's MatmulTransposeFusion forgets the transposition beside a 1-D operand.
        helper.make_node("Unsqueeze", ["err", "last"], ["err_column"]),
        helper.make_node("MatMul", ["xt", "err_column"], ["xte_column"]),
        helper.make_node("Squeeze", ["xte_column", "last"], ["xte"]),
        helper.make_node("Div", ["xte", "n_float"], ["half"]),
        helper.make_node("Add", ["half", "half"], ["gradient"]),
        helper.make_node("Mul", ["momentum", "moment"], ["kept"]),
        helper.make_node("Add", ["kept", "gradient"], ["moment_next"]),
        helper.make_node("Mul", ["learning_rate", "moment_next"], ["change"]),
        helper.make_node("Sub", ["w", "change"], ["w_next"]),
        helper.make_node("Add", ["count", "one"], ["count_next"]),
    ]
    inputs = [
        value("w", FLOAT, [width]),
        value("moment", FLOAT, [width]),
        value("count", INT, []),
        value("x", FLOAT, ["batch", width]),
        value("y", FLOAT, ["batch"]),
        value("learning_rate", FLOAT, []),
        value("momentum", FLOAT, []),
    ]
    outputs = [
        value("w_next", FLOAT, [width]),
        value("moment_next", FLOAT, [width]),
        value("count_next", INT, []),
        value("loss", FLOAT, []),
        value("total", FLOAT, []),
        value("gradient", FLOAT, [width]),
    ]
    constants = [helper.make_tensor("one", INT, [], [1]), helper.make_tensor("last", INT, [1], [-1])]
    return _model(nodes, inputs, outputs, constants)


def _evaluate(width: int) -> bytes:
    value = helper.make_tensor_value_info
    inputs = [value("w", FLOAT, [width]), value("x", FLOAT, ["batch", width]), value("y", FLOAT, ["batch"])]
    outputs = [value("loss", FLOAT, []), value("predicted", FLOAT, ["batch"])]
    return _model(_forward()[:4], inputs, outputs, [])


def write_regression(path: Path, width: int = 2, *, name: str = "regression", group: str = "") -> Bundle:
    """state w (shared, in a fusion group), moment (optimizer, local), count (integer, local); programs train, evaluate.

    `width` is how many features there are, and weights.
    """
    x = Input(name="x", dtype="float32", shape=("batch", width), source="features")
    y = Input(name="y", dtype="float32", shape=("batch",), source="labels")
    loss = Output(name="loss", dtype="float32", shape=(), over_batches="mean")
    parity = Parity(runtime="by hand", tolerance=0.0, checks={})
    train = Program(
        file=NOTHING,
        inputs=(
            x,
            y,
            Input(name="learning_rate", dtype="float32", shape=(), source="setting"),
            Input(name="momentum", dtype="float32", shape=(), source="setting", default=0.0),
        ),
        outputs=(
            loss,
            Output(name="total", dtype="float32", shape=(), over_batches="sum"),
            Output(name="gradient", dtype="float32", shape=(width,), over_batches="last"),
        ),
        reads=("w", "moment", "count"),
        writes={"w": "w_next", "moment": "moment_next", "count": "count_next"},
        parity=parity,
        golden=NOTHING,
    )
    evaluate = Program(
        file=NOTHING,
        inputs=(x, y),
        outputs=(loss, Output(name="predicted", dtype="float32", shape=("batch",), over_batches="concat")),
        reads=("w",),
        writes={},
        parity=parity,
        golden=NOTHING,
    )
    manifest = Manifest(
        format=FORMAT,
        name=name,
        method="fedavg",
        made_by="hand",
        data=DataContract((Feature((width,), "float32"),), labels_dtype="float32"),
        state=(
            StateTensor(name="w", dtype="float32", shape=(width,), role="parameter", group=group),
            StateTensor(name="moment", dtype="float32", shape=(width,), role="optimizer", fuse="local"),
            StateTensor(name="count", dtype="int64", shape=(), role="buffer", fuse="local"),
        ),
        programs={"train": train, "evaluate": evaluate},
        weights=NOTHING,
    )
    zero = {"zero": np.zeros(1, np.float32)}
    return bundles.write(
        path,
        manifest,
        weights={
            "w": np.zeros(width, np.float32),
            "moment": np.zeros(width, np.float32),
            "count": np.array(0, np.int64),
        },
        programs={"train": _train(width), "evaluate": _evaluate(width)},
        golden={"train": zero, "evaluate": zero},
    )
