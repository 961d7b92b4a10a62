"""A bundle's files for onnxruntime-training, driven by that runtime's own training API.

    training_model.onnx     forward and backward; leaves in each gradient buffer the direction of the optimizer's step,
                            and changes every other state tensor that training changes where it is
    optimizer_model.onnx    parameter -= learning rate * gradient buffer
    eval_model.onnx         loss and metrics in evaluation mode, and the model's output
    checkpoint              all state: trained parameters as trainable, everything else as frozen parameters

onnxruntime-training and plain onnxruntime share one import name, so an environment holds one of them. The exporter
runs this file by itself in the other environment, `python -I training_artifacts.py FOLDER` (see `main`): it needs
numpy, safetensors and onnxruntime-training-cpu, and nothing of edgefl.
"""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from edgefl.manifest import Program
    from edgefl.tensors import Array

ENGINE = "onnxruntime-training"
VERSION = "1.19.2"  # the last: onnxruntime's release notes of 1.20.0
INSTALL = f"pip install onnxruntime-training-cpu=={VERSION} edgefl, with Python 3.10 to 3.12 and without onnxruntime"
TRAINING, EVAL, OPTIMIZER, CHECKPOINT = "training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint"
FILES = (TRAINING, EVAL, OPTIMIZER, CHECKPOINT)
LEARNING_RATE = "learning_rate"  # edgefl.names has it; this file runs where edgefl is not
TRAINED, FROZEN = "trained.safetensors", "frozen.safetensors"  # what `main` makes the checkpoint of


class Artifacts:
    """The four files in a folder, loaded. State is kept in the checkpoint's own memory."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        """Raises ImportError without onnxruntime-training, and its own exceptions for files that it cannot load."""
        api = training_api()
        import onnxruntime

        self.runtime = f"{ENGINE} {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = False  # batches differ in size
        options.log_severity_level = 3
        # As edgefl/onnx_session.py, which says why; this file stands alone.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        os.environ.pop("ORT_LOAD_CONFIG_FROM_MODEL", None)
        self._checkpoint = api.CheckpointState.load_checkpoint(folder / CHECKPOINT)
        self._module = api.Module(folder / TRAINING, self._checkpoint, folder / EVAL, session_options=options)
        self._optimizer = api.Optimizer(folder / OPTIMIZER, self._module)
        #: Every state tensor, writable: the memory that the runtime trains in. Integers that training changes are
        #: float32 here.
        self.state: dict[str, Array] = {name: parameter.data for name, parameter in self._checkpoint.parameters}

    def train(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One step with a batch and settings; outputs are those before the step."""
        self._module.train()
        self._module.lazy_reset_grad()  # else gradients add up
        outputs = self._forward(inputs)
        self._optimizer.set_learning_rate(float(inputs[LEARNING_RATE]))
        self._optimizer.step()
        return outputs

    def evaluate(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Loss, metrics and the model's output for a batch."""
        self._module.eval()
        return self._forward(inputs)

    def run(self, program: str, values: Mapping[str, Array]) -> dict[str, Array]:
        """A step as a pure function, for proofs: inputs and state -> outputs, and the state afterwards by its names."""
        for name, tensor in self.state.items():
            if name in values:
                np.copyto(tensor, values[name], casting="unsafe")
        if program != "train":
            return self.evaluate(values)
        return self.train(values) | self.state

    def _forward(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        got = self._module(*(inputs[name] for name in self._module.input_names()))
        return dict(zip(self._module.output_names(), got if isinstance(got, tuple) else (got,), strict=True))


def training_api() -> Any:
    """onnxruntime.training.api. Raises ImportError where onnxruntime is not the training build.

    Its parent package imports torch for parts that nobody needs here, so an empty one takes its place.
    """
    import onnxruntime

    name, path = "onnxruntime.training", Path(onnxruntime.__file__).parent / "training"
    if not path.is_dir():
        raise ImportError(f"onnxruntime {onnxruntime.__version__} here is not the training build")
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    from onnxruntime.training import api

    return api


@dataclass(frozen=True)
class ProgramOf:
    """One program of some artifacts, as a pure function with the program's own inputs and outputs: for proofs.

    `call` is `Artifacts.run`, here or in another process; `programs` are the manifest's.
    """

    name: str
    programs: Mapping[str, Program]
    call: Callable[[str, Mapping[str, Array]], dict[str, Array]]
    runtime: str

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs and state -> all outputs. `values` may hold more than the program reads."""
        program = self.programs[self.name]
        inputs = {entry.name: values[entry.name] for entry in program.inputs}
        if self.name != "train":
            inputs = with_blanks(inputs, self.programs["evaluate"])
        got = self.call(self.name, {**values, **inputs})
        outputs = {output.name: got[output.name] for output in program.outputs}
        return outputs | {output: got[name].astype(values[name].dtype) for name, output in program.writes.items()}


def with_blanks(inputs: Mapping[str, Array], evaluate: Program) -> dict[str, Array]:
    """Inputs for the eval model: zeros where there are none, such as labels when only the model's output matters."""
    batch = len(next(iter(inputs.values())))
    zeros = {e.name: np.zeros([batch if isinstance(n, str) else n for n in e.shape], e.dtype) for e in evaluate.inputs}
    return {**zeros, **inputs}


def main(folder: Path) -> None:
    """Make the checkpoint of TRAINED and FROZEN in the folder, load the files, then run programs on request.

    Each request on stdin is a line {"program": NAME, "size": BYTES} and so many bytes of safetensors; each answer on
    stdout the same with "error": TEXT in place of the program where it failed. The first answer is to no request.
    """
    from safetensors.numpy import load, load_file, save

    def answer(tensors: Mapping[str, Array], **about: str) -> None:
        data = save({name: np.array(value, order="C") for name, value in tensors.items()})
        sys.stdout.buffer.write(json.dumps({**about, "size": len(data)}).encode() + b"\n" + data)
        sys.stdout.buffer.flush()

    def line_of(error: Exception) -> str:
        return str(error).strip().partition("\n")[0] or type(error).__name__

    try:
        make_checkpoint(load_file(folder / TRAINED), load_file(folder / FROZEN), folder / CHECKPOINT)
        artifacts = Artifacts(folder)
    except Exception as error:  # onnxruntime's exceptions share no base class
        answer({}, error=line_of(error))
        return
    answer({}, runtime=artifacts.runtime)
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        values = load(sys.stdin.buffer.read(request["size"]))
        try:
            answer(artifacts.run(request["program"], values))
        except Exception as error:
            answer({}, error=line_of(error))


def make_checkpoint(trained: Mapping[str, Array], frozen: Mapping[str, Array], path: Path) -> None:
    """Write a checkpoint file. Raises ImportError without onnxruntime-training."""
    training_api()
    import onnx.numpy_helper  # comes with onnxruntime-training
    from onnxruntime.capi import _pybind_state

    trainable, constant = (
        [onnx.numpy_helper.from_array(tensors[name], name).SerializeToString() for name in sorted(tensors)]
        for tensors in (trained, frozen)
    )
    _pybind_state.save_checkpoint(trainable, constant, str(path), False)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:  # only: could it?
        import safetensors  # noqa: F401

        training_api()
