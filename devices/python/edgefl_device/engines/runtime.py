"""A bundle's programs and its state, run by onnxruntime.

The state lives in two buffers per tensor: a program reads one and writes the other, then they swap, so a step
copies no state. No method names, no tasks and no network here; `interpreter.py` carries out tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np

from edgefl.bundle import Bundle, check_tensors
from edgefl.errors import BundleError, EdgeflError, InputError, first_line
from edgefl.manifest import Program, StateTensor
from edgefl.onnx_session import make_session
from edgefl.tensors import Array
from edgefl_device.engines.engine import next_version
from edgefl_device.work.stopping import Stop, Stopped


class _Buffers:
    """One state tensor on the device: what programs read, and (once a program writes it) where they write next.

    An OrtValue made from an array on the CPU shares its memory, so `current` and `current_value` are one buffer.
    """

    def __init__(self, initial: Array, from_numpy: Any) -> None:
        self._from_numpy = from_numpy
        self.current: Array = np.array(initial, order="C")  # our own copy
        self.current_value: Any = from_numpy(self.current)
        self.spare: Array | None = None  # made at the first write: a device that only predicts never pays for it
        self.spare_value: Any = None

    def writable(self) -> Any:
        """The OrtValue for a program to write to."""
        if self.spare is None:
            self.spare = np.zeros_like(self.current)
            self.spare_value = self._from_numpy(self.spare)
        return self.spare_value

    def swap(self) -> None:
        assert self.spare is not None
        self.current, self.spare = self.spare, self.current
        self.current_value, self.spare_value = self.spare_value, self.current_value


class Runtime:
    """The programs of a bundle and the state they work on.

    `threads` is how many cores one operator may use. Not for several threads at once.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.version = next_version()
        self._threads = threads
        self._engine = _engine()
        from_numpy = self._engine.OrtValue.ortvalue_from_numpy
        weights = bundle.weights()
        self._described: dict[str, StateTensor] = {tensor.name: tensor for tensor in self.manifest.state}
        self._buffers = {name: _Buffers(weights.pop(name), from_numpy) for name in self._described}
        self._sessions: dict[str, Any] = {}  # made at the first use: a device rarely needs every program

    def state(self, names: Iterable[str] | None = None) -> dict[str, Array]:
        """Copies of the state tensors called `names`, by default all."""
        return {name: self._known(name).current.copy() for name in (self._described if names is None else names)}

    def view(self, name: str) -> Array:
        """One state tensor without a copy, read-only; what it shows is undefined after the next step."""
        view: Array = self._known(name).current.view()
        view.flags.writeable = False
        return view

    def load(self, tensors: Mapping[str, Array]) -> None:
        """Set some state tensors. All or none: names, dtypes and shapes are checked first (InputError)."""
        for name in tensors:
            self._known(name)
        expected = [self._described[name] for name in tensors]
        try:
            check_tensors(tensors, expected, where="tensors to load")
        except BundleError as error:
            raise InputError(error.message, hint="does the aggregator use the same bundle?") from error
        if tensors:
            self.version = next_version()
        for name, tensor in tensors.items():
            np.copyto(self._buffers[name].current, tensor)

    def reset(self, names: Iterable[str]) -> None:
        """Set the named state tensors back to the bundle's initial values."""
        wanted = list(names)
        for name in wanted:
            self._known(name)
        if wanted:
            initial = self.bundle.weights()  # from disk: keeping a second copy would cost memory on every device
            self.load({name: initial[name] for name in wanted})

    def step(self, program: str, inputs: Mapping[str, Array], stop: Stop | None = None) -> dict[str, Array]:
        """Run a program once: it reads and changes the state, and returns its outputs.

        `inputs` holds every input of the manifest's program, settings too, as contiguous arrays. When the
        program fails (EdgeflError), or is stopped (Stopped), the state stays as it was.
        """
        described = self.manifest.program(program)
        session = self._session(program, described)
        binding = session.io_binding()
        try:
            for name in described.reads:
                binding.bind_ortvalue_input(name, self._buffers[name].current_value)
            for name, array in inputs.items():
                binding.bind_cpu_input(name, array)
            for name, output in described.writes.items():
                binding.bind_ortvalue_output(output, self._buffers[name].writable())
            for wanted in described.outputs:
                binding.bind_output(wanted.name, "cpu")  # allocated by the session: its shape may depend on the batch
            options = self._engine.RunOptions()
            with stop.during(options) if stop else nullcontext():
                session.run_with_iobinding(binding, options)
        except Exception as error:  # onnxruntime's exceptions share no base class
            if stop is not None and stop.requested:
                raise Stopped("stopped on request") from error
            raise EdgeflError(f"program {program!r} failed: {first_line(error)}") from error
        values = binding.get_outputs()[len(described.writes) :]  # in the order of binding
        outputs = {wanted.name: value.numpy() for wanted, value in zip(described.outputs, values, strict=True)}
        if described.writes:
            self.version = next_version()
        for name in described.writes:
            self._buffers[name].swap()
        return outputs

    def _known(self, name: str) -> _Buffers:
        if name not in self._buffers:
            raise InputError(f"bundle {self.manifest.name!r} has no state tensor {name!r}")
        return self._buffers[name]

    def _session(self, name: str, program: Program) -> Any:
        if name not in self._sessions:
            if len(set(program.writes.values())) != len(program.writes):
                raise BundleError(
                    f"program {name!r} writes one output to two state tensors", hint="re-export the bundle"
                )
            try:
                data = self.bundle.program_bytes(name)
                self._sessions[name] = make_session(data, threads=self._threads, is_tight=program.memory is not None)
            except EdgeflError:
                raise
            except Exception as error:
                raise BundleError(
                    f"onnxruntime {self._engine.__version__} cannot load program {name!r}: {first_line(error)}",
                    hint="upgrade onnxruntime, or export for an older one",
                ) from error
        return self._sessions[name]


def _engine() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("a device needs onnxruntime", hint="pip install 'edgefl[device]'") from error
    return onnxruntime
