"""How fast one core of this machine is, in the two units that devices are described with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgefl.onnx_session import make_session

SIZE = 512  # of the square matrices: 1 MB each, so that they stay in cache as the tiles of a larger product would
COPIED_BYTES = 64 * 2**20  # more than any cache


@dataclass(frozen=True)
class Speed:
    """One core: see devices.Device."""

    gflops: float
    copy_gb_s: float


def measure_speed() -> Speed:
    """About 0.3 s. The best of several tries: others on the machine can only make it slower."""
    product = _matrix_product()
    source = np.ones(COPIED_BYTES, np.uint8)
    target = np.zeros_like(source)
    return Speed(
        gflops=2 * SIZE**3 / best_seconds(product, tries=20) / 1e9,
        copy_gb_s=COPIED_BYTES / best_seconds(lambda: np.copyto(target, source), tries=8) / 1e9,
    )


def best_seconds(run: Callable[[], object], *, tries: int) -> float:
    """The shortest of some runs; the first is not counted."""
    run()
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _matrix_product() -> Callable[[], object]:
    """One product in onnxruntime with one thread: the routine that programs spend their time in."""
    from onnx import TensorProto, helper

    square = [SIZE, SIZE]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, square) for name in "abc"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = make_session(model.SerializeToString())
    array = np.ones((SIZE, SIZE), np.float32)
    return lambda: session.run(None, {"a": array, "b": array})
