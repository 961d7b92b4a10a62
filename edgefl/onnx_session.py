"""A session of onnxruntime, made of bytes from a bundle: the same precautions wherever one is made."""

from __future__ import annotations

import functools
import os
from typing import Any

# A larger free piece of the arena is split for a smaller tensor when more than so many bytes would be left over; by
# default that is 128 MiB, and pieces are given away whole. Measured: docs/benchmarks.md.
MAX_DEAD_BYTES = 4096


def make_session(data: bytes, *, threads: int = 1, optimized: bool = True, is_tight: bool = False) -> Any:
    """An InferenceSession on the CPU of a program's bytes, which `onnx_walk.check_graph` has let pass.

    `optimized` False: the graph as it is written, each of its values made. `is_tight`: in an arena with few gaps, for
    programs that were made to a memory budget; all such sessions of a process share it, and it stays. Raises
    ImportError without onnxruntime, and what onnxruntime raises where it cannot load them.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A waiting thread that spins takes its core from the other devices of an emulator and drains a battery: with two
    # processes of two threads on two cores, spinning doubled both the time and the work of a step.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Batches differ in size (the last is short, evaluation is larger): a pattern per shape only holds memory.
    options.enable_mem_pattern = False
    options.log_severity_level = 3  # errors; warnings about graph optimisation tell a device's user nothing
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if is_tight and _tight_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")
    # What was walked as ONNX is read as ONNX: by itself onnxruntime looks at the bytes and may choose its own format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # With this variable onnxruntime takes session options from a model's metadata. The walk refuses those; this shuts
    # the door itself.
    os.environ.pop("ORT_LOAD_CONFIG_FROM_MODEL", None)
    # Constants are folded while a session is made, which nothing can stop: 250 bytes took as long as they liked. The
    # exporter leaves little to fold: steps of five models of the zoo take as long without, within 2 %.
    return onnxruntime.InferenceSession(
        data, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )


@functools.cache
def _tight_arena() -> bool:
    """Register the arena for this process; False where the process has one of its own already."""
    import onnxruntime

    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    try:
        onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg(0, 0, -1, MAX_DEAD_BYTES))
    except Exception:  # onnxruntime's errors share no base class
        return False
    return True
