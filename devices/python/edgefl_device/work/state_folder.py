"""The folder of what a device must not forget, and what a kill inside a write has left in it.

lock, life.json                             which process has it, and which of the device's lives that is: `life.py`
RUN.journal                                 private state and last reply: `journal.py`
RUN.epoch, RUN.failed                       which aggregator counts: `epochs.py`; an ask that failed: `failures.py`
RUN.safetensors                             its model at the end of a run
RUN.kept/BUFFER/ROUND.safetensors           buffers of examples: `kept.py`
packet-limits.json                          what brokers take that do not say so: `edgefl/packet_limit.py`
bundles/SHA256/...                          bundles, as their manifests name the files: `download.py`
"""

from __future__ import annotations

from pathlib import Path

from edgefl.files import sweep
from edgefl.manifest import MAX_DEPTH

WRITTEN = (
    *("life.json", "packet-limits.json", "*.journal", "*.epoch", "*.failed", "*.safetensors", "*.kept/*/*.safetensors"),
    *("/".join(("bundles", "*", *["*"] * depth)) for depth in range(1, MAX_DEPTH + 1)),
)


def sweep_state(folder: Path) -> int:
    """Remove the temporaries that a killed process left in a state folder; how many. The caller holds its lock."""
    return sweep(folder, WRITTEN)
