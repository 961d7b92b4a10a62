"""The process in which `growth.measure` takes steps: python -m edgefl_exporter.memory.growth_worker FOLDER STEPS

Drives the program as a device does, with state in two sets of buffers. Prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

from edgefl.onnx_session import make_session

PROCESS = Path("/proc/self")


def main() -> None:
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    with np.load(folder / "state.npz") as file:
        arrays = dict(file)  # an OrtValue of onnxruntime 1.20 looks at its array without holding it
    with np.load(folder / "inputs.npz") as file:
        inputs = dict(file)
    writes: dict[str, str] = json.loads((folder / "writes.json").read_text())
    spares = {name: np.zeros_like(arrays[name]) for name in writes}
    session = make_session((folder / "program.onnx").read_bytes(), is_tight=True)
    read = {entry.name for entry in session.get_inputs()}
    free = [entry.name for entry in session.get_outputs() if entry.name not in writes.values()]
    grown, seconds = 0, []
    (PROCESS / "clear_refs").write_text("5")  # from here on the peak is that of the steps
    loaded = _memory("VmRSS")
    for _ in range(steps):
        binding = session.io_binding()
        for name in read:
            binding.bind_ortvalue_input(name, value(inputs[name] if name in inputs else arrays[name]))
        for name, output in writes.items():
            binding.bind_ortvalue_output(output, value(spares[name]))
        for name in free:
            binding.bind_output(name, "cpu")
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        seconds.append(time.perf_counter() - start)
        for name in writes:
            arrays[name], spares[name] = spares[name], arrays[name]
    grown = _memory("VmHWM") - loaded
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(arrays[name].tobytes())
    print(
        json.dumps(
            {
                "grown_bytes": grown,
                "step_s": min(seconds),
                "state_sha256": digest.hexdigest(),
                "is_finite": all(bool(np.isfinite(array).all()) for array in arrays.values()),
                "runtime": f"onnxruntime {onnxruntime.__version__}",
            }
        )
    )


def _memory(field: str) -> int:
    """VmRSS, what is resident now, or VmHWM, the most that was: in bytes."""
    line = next(line for line in (PROCESS / "status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
