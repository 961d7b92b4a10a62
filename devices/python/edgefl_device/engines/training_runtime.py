"""The engine for fleets that ship onnxruntime-training: a bundle's files for it, behind the same face as `runtime.py`.

`train`, `evaluate` and `predict` run in its training API. Whatever else a method asks for (gradients, dreams)
runs as the portable program, in an inference session of the same library, on the same state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from edgefl.bundle import Bundle, check_tensors
from edgefl.errors import BundleError, EdgeflError, InputError, first_line
from edgefl.manifest import StateTensor
from edgefl.tensors import Array
from edgefl.training_artifacts import ENGINE, FILES, Artifacts, with_blanks
from edgefl_device.engines.engine import next_version
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.stopping import Stop


class TrainingRuntime:
    """As `runtime.Runtime`. The state lives in the memory of the training API's checkpoint.

    That API has no way to end a step that is running: a request to stop waits for its end.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        """Raises BundleError for a bundle without files for this engine, or with some that it cannot load."""
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.version = next_version()
        self._threads = threads
        self._programs = self.manifest.target(ENGINE).parity
        self._described: dict[str, StateTensor] = {tensor.name: tensor for tensor in self.manifest.state}
        self._portable: Runtime | None = None  # made at the first use: FedAvg never needs it
        folder = bundle.target_folder(ENGINE, FILES)
        try:
            self._artifacts = Artifacts(folder, threads)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise BundleError(f"the bundle's files for {ENGINE} cannot be loaded: {first_line(error)}") from error
        if missing := self._described.keys() - self._artifacts.state.keys():
            raise BundleError(f"the bundle's checkpoint lacks {min(missing)!r}", hint="re-export the bundle")

    def state(self, names: Iterable[str] | None = None) -> dict[str, Array]:
        return {
            name: self._stored(name).astype(self._described[name].dtype)
            for name in (self._described if names is None else names)
        }

    def view(self, name: str) -> Array:
        view: Array = self._stored(name).astype(self._described[name].dtype, copy=False).view()
        view.flags.writeable = False
        return view

    def load(self, tensors: Mapping[str, Array]) -> None:
        for name in tensors:
            self._stored(name)
        try:
            check_tensors(tensors, [self._described[name] for name in tensors], where="tensors to load")
        except BundleError as error:
            raise InputError(error.message, hint="does the aggregator use the same bundle?") from error
        if tensors:
            self.version = next_version()
        for name, tensor in tensors.items():
            np.copyto(self._stored(name), tensor, casting="unsafe")

    def reset(self, names: Iterable[str]) -> None:
        wanted = list(names)
        for name in wanted:
            self._stored(name)
        if wanted:
            initial = self.bundle.weights()
            self.load({name: initial[name] for name in wanted})

    def step(self, program: str, inputs: Mapping[str, Array], stop: Stop | None = None) -> dict[str, Array]:
        described = self.manifest.program(program)
        if program not in self._programs:
            return self._step_portable(program, inputs, stop)
        if described.writes:
            self.version = next_version()
        try:
            if program == "train":
                got = self._artifacts.train(inputs)
            else:
                got = self._artifacts.evaluate(with_blanks(inputs, self.manifest.program("evaluate")))
        except Exception as error:
            raise EdgeflError(f"program {program!r} failed: {first_line(error)}") from error
        return {output.name: got[output.name] for output in described.outputs}

    def _step_portable(self, program: str, inputs: Mapping[str, Array], stop: Stop | None) -> dict[str, Array]:
        if self._portable is None:
            self._portable = Runtime(self.bundle, threads=self._threads)
        described = self.manifest.program(program)
        self._portable.load(self.state(described.reads))
        outputs = self._portable.step(program, inputs, stop)
        self.load({name: self._portable.view(name) for name in described.writes})
        return outputs

    def _stored(self, name: str) -> Array:
        if name not in self._described:
            raise InputError(f"bundle {self.manifest.name!r} has no state tensor {name!r}")
        return self._artifacts.state[name]
