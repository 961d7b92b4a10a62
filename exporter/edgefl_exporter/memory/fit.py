"""The fastest program whose training step fits a memory budget: measured, since no count tells what a runtime takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from edgefl.costs import alive_at_peak
from edgefl.errors import InputError, ParityError
from edgefl.manifest import Memory, Program
from edgefl.shapes import read_graph
from edgefl.tensors import Array
from edgefl_exporter.memory.curve import Point, curve
from edgefl_exporter.memory.growth import Growth, measure
from edgefl_exporter.memory.order import runtime_order
from edgefl_exporter.memory.training import take_apart
from edgefl_exporter.memory.write import write

BATCH = 32  # where nobody says one
SETTINGS = "1 thread, no memory pattern, tight arena"


def fit(
    program: Program,
    data: bytes,
    state: Mapping[str, Array],
    budget: int,
    batch: int,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[bytes, Memory]:
    """The file `data`, or one that makes forward tensors again: steps of `batch` grow a process by at most `budget`.

    Candidates get slower along the curve, so it is halved until the first that fits. Each takes some steps in a process
    of its own. Raises InputError where not even the least fits, and says what holds it; ParityError for a candidate
    whose state is not bit for bit the plain program's.
    """
    plain = measure(program, data, state, batch)
    tell(f"a step of {batch} grows by {_mb(plain.grown_bytes)}")
    if plain.grown_bytes <= budget:
        return data, _memory(budget, batch, plain, plain)
    points = curve(take_apart(read_graph(program, data, state), program, batch))

    def tried(point: Point) -> tuple[bytes, Growth]:
        file = write(data, point.program)
        growth = measure(program, file, state, batch)
        tell(f"{len(point.chosen)} tensors made again: {_mb(growth.grown_bytes)}")
        if plain.is_finite and growth.state_sha256 != plain.state_sha256:
            raise ParityError(
                f"made to a budget, the program differs from the plain one after some steps of {batch}",
                hint="please report the model; export it without --memory meanwhile",
            )
        return file, growth

    best, least = tried(points[-1]) if len(points) > 1 else (data, plain)
    if least.grown_bytes > budget:
        smallest = min(plain.grown_bytes, least.grown_bytes)
        raise InputError(
            f"the least that a training step of {batch} examples grows by is {_mb(smallest)}; "
            f"--memory is {_mb(budget)}",
            hint=f"smaller batches (--memory-batch) need less. Most of it: {_held(points[-1], batch)}",
        )
    too_large, fits = 0, len(points) - 1
    while fits - too_large > 1:
        middle = (too_large + fits) // 2
        file, growth = tried(points[middle])
        if growth.grown_bytes <= budget:
            fits, best, least = middle, file, growth
        else:
            too_large = middle
    return best, _memory(budget, batch, least, plain)


def _memory(budget: int, batch: int, growth: Growth, plain: Growth) -> Memory:
    return Memory(budget, batch, growth.grown_bytes, plain.grown_bytes, growth.runtime, SETTINGS)


def _held(point: Point, batch: int) -> str:
    """The operators whose results are the most of what is alive at the peak."""
    graph = replace(point.program.graph, nodes=tuple(runtime_order(point.program.graph.nodes)))
    sums: Counter[str] = Counter()
    for name, size in alive_at_peak(graph, batch).items():
        sums[next(node.kind for node in graph.nodes if name in node.outputs)] += size
    return ", ".join(f"{kind} {_mb(size)}" for kind, size in sums.most_common(3))


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
