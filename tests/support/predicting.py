"""A bundle made by hand that predicts and no more: three classes of images [2, 1, 1], the largest of x W."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper
from toy import NOTHING

from edgefl import bundle as bundles
from edgefl.bundle import Bundle
from edgefl.data_contract import DataContract, Feature, Normalisation
from edgefl.manifest import FORMAT, Input, Manifest, Output, Parity, Program, StateTensor

# Both channels 0 is the first class, the first one lit the second, the second one lit the third.
WEIGHTS = np.array([[-1, 1, 0], [-1, 0, 1]], np.float32)
NORMALISATION = Normalisation((0.5, 0.25), (0.5, 0.25))  # 0 becomes -1, and 1 becomes 1 and 3


def write_predicting(
    path: Path, *, names: tuple[str, ...] = ("dark", "red", "green"), ignored_label: int | None = None
) -> Bundle:
    value, node = helper.make_tensor_value_info, helper.make_node
    graph = helper.make_graph(
        [node("Flatten", ["x"], ["flat"]), node("MatMul", ["flat", "w"], ["logits"])],
        "predict",
        [value("x", TensorProto.FLOAT, ["batch", 2, 1, 1]), value("w", TensorProto.FLOAT, [2, 3])],
        [value("logits", TensorProto.FLOAT, ["batch", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    predict = Program(
        file=NOTHING,
        inputs=(Input("x", "float32", ("batch", 2, 1, 1), "features"),),
        outputs=(Output("logits", "float32", ("batch", 3), "concat"),),
        reads=("w",),
        writes={},
        parity=Parity("by hand", 1e-4, {}),
        golden=NOTHING,
    )
    feature = Feature((2, 1, 1), "float32", range=(0.0, 1.0), normalisation=NORMALISATION)
    manifest = Manifest(
        FORMAT,
        "lamps",
        "fedavg",
        "hand",
        DataContract((feature,), classes=3, class_names=names, ignored_label=ignored_label),
        (StateTensor("w", "float32", (2, 3), "parameter"),),
        {"predict": predict},
        NOTHING,
    )
    return bundles.write(
        path,
        manifest,
        weights={"w": np.zeros((2, 3), np.float32)},
        programs={"predict": model.SerializeToString()},
        golden={"predict": {"zero": np.zeros(1, np.float32)}},
    )
