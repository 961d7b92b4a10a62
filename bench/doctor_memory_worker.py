"""One process of `doctor_memory.py` or `deq_memory.py`: train five steps, print by how many bytes it grew, at its peak.

python bench/doctor_memory_worker.py BUNDLE BATCH_SIZE [SETTING=NUMBER ...]
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime  # noqa: F401  (what it takes by itself is no part of the growth)

from edgefl import bundle as bundles
from edgefl.shapes import example_inputs
from edgefl_device.engines.runtime import Runtime


def memory(field: str) -> int:
    """VmRSS (now) or VmHWM (the most it ever was) of this process, in bytes."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file.read().splitlines())
    return int(lines[field].split()[0]) * 1024


def main() -> None:
    bundle, batch_size = bundles.read(sys.argv[1]), int(sys.argv[2])
    inputs = example_inputs(bundle.manifest.program("train"), batch_size)
    for name, _, number in (argument.partition("=") for argument in sys.argv[3:]):
        inputs[name] = np.full_like(inputs[name], float(number))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM starts again from now
    before = memory("VmRSS")
    runtime = Runtime(bundle)
    for _ in range(5):
        runtime.step("train", inputs)
    print(memory("VmHWM") - before)


if __name__ == "__main__":
    main()
