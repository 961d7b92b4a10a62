"""One engine of `step_time.py`, in a process and, if need be, an environment of its own.

python bench/step_time_worker.py ENGINE FOLDER MODEL THREADS

FOLDER holds x.npy, y.npy and the engine's own files. Says {"ready": true, "resident_mb": ...} or {"why": "..."};
then, for every line N on standard input, takes N training steps and says {"seconds": [...]}. Imports only what its
engine needs.
`resident_mb` is what the process had when everything was loaded, before its first step.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LEARNING_RATE = 0.01
Step = Callable[[], object]


def portable(folder: Path, x: np.ndarray, y: np.ndarray, model: str, threads: int, *, is_tight: bool = False) -> Step:
    """Our program as a device runs it: IOBinding, state in OrtValues, two sets of buffers that change places."""
    import onnxruntime

    from edgefl.onnx_session import make_session

    session = make_session((folder / "train.onnx").read_bytes(), threads=threads, is_tight=is_tight)
    held: list[np.ndarray] = []  # an OrtValue of onnxruntime 1.20 looks at its array's memory without holding it

    def value(array: np.ndarray) -> Any:
        held.append(array)
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    writes = json.loads((folder / "writes.json").read_text())
    read = {entry.name for entry in session.get_inputs()}
    with np.load(folder / "weights.npz") as weights:
        now = {name: value(weights[name]) for name in weights.files}
        spare = {name: value(np.zeros_like(weights[name])) for name in writes}
    inputs = {"x": value(x), "y": value(y), "learning_rate": value(np.array(LEARNING_RATE, np.float32))}

    def bind(state: dict[str, Any], after: dict[str, Any]) -> Any:
        binding = session.io_binding()
        for name, tensor in (state | inputs).items():
            if name in read:
                binding.bind_ortvalue_input(name, tensor)
        for name, output in writes.items():
            binding.bind_ortvalue_output(output, after[name])
        for entry in session.get_outputs():
            if entry.name not in writes.values():
                binding.bind_output(entry.name, "cpu")
        return binding

    turns = [bind(now, spare), bind(now | spare, now)]

    def step(_owners: object = held) -> None:
        session.run_with_iobinding(turns[0])
        turns.reverse()

    return step


def torch(
    folder: Path, x: np.ndarray, y: np.ndarray, model: str, threads: int, *, is_checkpointed: bool = False
) -> Step:
    """PyTorch eager; checkpointed: what the blocks of the model keep is computed again in the backward."""
    import torch
    from step_models import MODELS, WithLoss
    from torch.utils.checkpoint import checkpoint

    torch.set_num_threads(threads)
    module = WithLoss(MODELS[model].make()[0]).train()
    blocks = [m for m in module.model.modules() if m is not module.model and not type(m).__module__.startswith("torch")]
    for block in blocks if is_checkpointed else ():
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    features, labels = torch.from_numpy(x), torch.from_numpy(y)

    def step() -> None:
        optimizer.zero_grad()
        module(features, labels).backward()
        optimizer.step()

    return step


def onnxruntime_training(folder: Path, x: np.ndarray, y: np.ndarray, model: str, threads: int) -> Step:
    """That runtime's own gradient graph and optimizer, from the model's forward graph."""
    import onnx
    import onnxruntime
    from onnxruntime.training import artifacts
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    forward = onnx.load(folder / "forward.onnx")
    names = json.loads((folder / "names.json").read_text())
    stored = {tensor.name for tensor in forward.graph.initializer}
    artifacts.generate_artifacts(
        forward,
        requires_grad=[name for name in names["parameters"] if name in stored],
        frozen_params=[name for name in names["buffers"] if name in stored],
        loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=artifacts.OptimType.SGD,
        artifact_directory=str(folder),
    )
    for path in folder.glob("*_model.onnx"):  # onnx writes a newer version than 1.19.2 reads
        written = onnx.load(path)
        written.ir_version = min(written.ir_version, 9)
        onnx.save(written, path)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    state = CheckpointState.load_checkpoint(str(folder / "checkpoint"))
    module = Module(str(folder / "training_model.onnx"), state, session_options=settings)
    optimizer = Optimizer(str(folder / "optimizer_model.onnx"), module)
    optimizer.set_learning_rate(LEARNING_RATE)
    labels = y.reshape(-1)

    def step() -> None:
        module.train()
        module(x, labels)
        optimizer.step()
        module.lazy_reset_grad()

    return step


def executorch(folder: Path, x: np.ndarray, y: np.ndarray, model: str, threads: int) -> Step:
    """ExecuTorch's portable kernels (its training has no other): forward and backward as one method."""
    import torch
    from executorch.exir import to_edge
    from executorch.extension.training import (  # type: ignore[import-not-found]
        _load_for_executorch_for_training_from_buffer,
        get_sgd_optimizer,
    )
    from torch.export.experimental import _export_forward_backward

    joint = _export_forward_backward(torch.export.load(folder / "step.pt2"))
    buffer = to_edge(joint).to_executorch().buffer
    program = _load_for_executorch_for_training_from_buffer(buffer)
    inputs = (torch.from_numpy(x), torch.from_numpy(y))
    program.forward_backward("forward", inputs)
    parameters = program.named_parameters()
    optimizer = get_sgd_optimizer(parameters, LEARNING_RATE)

    # Neither the program nor the optimizer keeps alive what it was made from.
    def step(_owners: object = (buffer, parameters)) -> None:
        program.forward_backward("forward", inputs)
        optimizer.step(program.named_gradients())

    return step


ENGINES = {
    "portable": portable,
    "tight": functools.partial(portable, is_tight=True),  # as a device runs a program that was made to a memory budget
    "torch": torch,
    "checkpointed": functools.partial(torch, is_checkpointed=True),
    "onnxruntime-training": onnxruntime_training,
    "executorch": executorch,
}


def resident_mb() -> float | None:
    """Memory of this process, in MB of 10^6 bytes; None where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024 / 1e6


def forget_peak() -> None:
    """From here on the peak of this process is that of its steps, where Linux is asked."""
    if (forget := Path("/proc/self/clear_refs")).exists():
        forget.write_text("5")


def main() -> None:
    engine, folder, model, threads = sys.argv[1:]
    # What engines and their libraries print must not come between our lines.
    with open(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        os.environ["OMP_NUM_THREADS"] = threads
        x, y = (np.load(Path(folder) / f"{name}.npy") for name in "xy")
        try:
            step = ENGINES[engine](Path(folder), x, y, model, int(threads))
            forget_peak()
            loaded = resident_mb()
            step()
        except Exception as error:  # whatever it is, it is the reason that the row gives
            lines = [line for line in str(error).splitlines() if line.strip()] or [""]
            print(json.dumps({"why": f"{type(error).__name__}: {lines[0].strip()[:160]}"}), file=answers)
            return
        print(json.dumps({"ready": True, "resident_mb": loaded}), file=answers)
        for line in sys.stdin:
            seconds = []
            for _ in range(int(line)):
                start = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - start)
            print(json.dumps({"seconds": seconds}), file=answers)


if __name__ == "__main__":
    main()
