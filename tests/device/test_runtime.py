"""The runtime: buffers that swap and never alias, state that is set whole or not at all."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import numpy as np
import pytest

from edgefl.bundle import Bundle
from edgefl.errors import BundleError, EdgeflError, InputError
from edgefl_device.engines.runtime import Runtime

X = np.eye(2, dtype=np.float32)
Y = np.array([1, 2], np.float32)


def settings(learning_rate: float = 0.5, momentum: float = 0.0) -> dict[str, np.ndarray]:
    return {"learning_rate": np.array(learning_rate, "f4"), "momentum": np.array(momentum, "f4")}


def step(runtime: Runtime, x: np.ndarray = X, y: np.ndarray = Y, **values: float) -> dict[str, np.ndarray]:
    return runtime.step("train", {"x": x, "y": y, **settings(**values)})


def test_one_step_by_hand(regression: Bundle) -> None:
    runtime = Runtime(regression)
    outputs = step(runtime)
    assert outputs["loss"] == 2.5  # (1 + 4) / 2
    assert outputs["total"] == 5
    np.testing.assert_array_equal(outputs["gradient"], [-1, -2])
    state = runtime.state()
    np.testing.assert_array_equal(state["w"], [0.5, 1.0])
    assert state["count"] == 1


def test_many_steps_are_numpys(regression: Bundle) -> None:
    rng = np.random.default_rng(5)
    runtime = Runtime(regression)
    w, moment = np.zeros(2, np.float32), np.zeros(2, np.float32)
    for i in range(1, 8):
        x, y = rng.normal(size=(i, 2)).astype(np.float32), rng.normal(size=i).astype(np.float32)
        step(runtime, x, y, learning_rate=0.1, momentum=0.9)
        moment = np.float32(0.9) * moment + np.float32(2 / i) * (x.T @ (x @ w - y))
        w = w - np.float32(0.1) * moment
    state = runtime.state()
    np.testing.assert_allclose(state["w"], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state["moment"], moment, rtol=1e-5, atol=1e-6)
    assert state["count"] == 7


def test_copies_stay_what_they_were(regression: Bundle) -> None:
    runtime = Runtime(regression)
    first, outputs = runtime.state(), step(runtime)
    second = runtime.state()
    for _ in range(3):
        step(runtime)
    np.testing.assert_array_equal(first["w"], [0, 0])
    np.testing.assert_array_equal(second["w"], [0.5, 1])
    np.testing.assert_array_equal(outputs["gradient"], [-1, -2])
    second["w"][:] = 99
    assert runtime.state()["w"].max() < 3


def test_loading_copies_and_the_next_step_starts_there(regression: Bundle) -> None:
    runtime = Runtime(regression)
    step(runtime)  # so that the spare buffer is not fresh
    mine = np.array([1, 2], np.float32)
    runtime.load({"w": mine})
    mine[:] = 77
    assert step(runtime)["loss"] == 0
    np.testing.assert_array_equal(runtime.state()["w"], [1, 2])


def test_what_came_from_state_can_be_loaded_later(regression: Bundle) -> None:
    runtime = Runtime(regression)
    before = runtime.state()
    step(runtime, momentum=0.9)
    runtime.load(before)
    for name, tensor in runtime.state().items():
        np.testing.assert_array_equal(tensor, before[name])


def test_reset_brings_back_the_bundles_values(regression: Bundle) -> None:
    runtime = Runtime(regression)
    step(runtime)
    runtime.reset(["moment", "count"])
    state = runtime.state()
    np.testing.assert_array_equal(state["moment"], [0, 0])
    assert state["count"] == 0
    np.testing.assert_array_equal(state["w"], [0.5, 1.0])


def test_a_view_is_read_only(regression: Bundle) -> None:
    view = Runtime(regression).view("w")
    with pytest.raises(ValueError):
        view[0] = 1


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"v": np.zeros(2, np.float32)}, "bundle 'regression' has no state tensor 'v'"),
        ({"w": np.zeros(3, np.float32)}, "tensors to load: 'w' is float32 [3]; expected float32 [2]"),
        ({"w": np.zeros(2, np.float64)}, "tensors to load: 'w' is float64 [2]; expected float32 [2]"),
    ],
)
def test_a_wrong_tensor_loads_nothing(regression: Bundle, tensors: dict[str, np.ndarray], message: str) -> None:
    runtime = Runtime(regression)
    with pytest.raises(InputError) as caught:
        runtime.load({"moment": np.ones(2, np.float32), **tensors})
    assert caught.value.message == message
    np.testing.assert_array_equal(runtime.state()["moment"], [0, 0])


def test_a_failed_step_leaves_the_state(regression: Bundle) -> None:
    runtime = Runtime(regression)
    step(runtime)
    with pytest.raises(EdgeflError, match=r"^program 'train' failed: "):
        step(runtime, x=np.zeros((2, 3), np.float32))
    with pytest.raises(EdgeflError, match=r"^program 'train' failed: "):
        runtime.step("train", {"x": X})
    np.testing.assert_array_equal(runtime.state()["w"], [0.5, 1.0])
    step(runtime)
    assert runtime.state()["count"] == 2


def test_two_tensors_in_one_output_are_refused(regression: Bundle) -> None:
    train = regression.manifest.programs["train"]
    train = msgspec.structs.replace(train, writes={"w": "w_next", "moment": "w_next"})
    manifest = msgspec.structs.replace(regression.manifest, programs={"train": train})
    runtime = Runtime(Bundle(regression.path, manifest, regression.manifest_bytes))
    with pytest.raises(BundleError, match="writes one output to two state tensors"):
        step(runtime)


@pytest.mark.parametrize("module", ["engines.runtime", "work.interpreter", "data"])
def test_a_device_imports_little(module: str) -> None:
    heavy = ["torch", "rich", "click", "sklearn", "PIL", "paho", "onnx", "edgefl_exporter"]
    code = f"import sys, edgefl_device.{module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
