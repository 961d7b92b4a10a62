"""Programs of less and less memory, by greedy choice: the most bytes off the peak for the least work more.

The peak is a smooth one, so that taking bytes off one of two equal peaks counts too: ResNet-20 came to 0.55 of its
plain program's growth without, to 0.49 with.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

import numpy as np

from edgefl.costs import bytes_alive, multiply_adds
from edgefl.shapes import Graph
from edgefl_exporter.memory.order import runtime_order
from edgefl_exporter.memory.recompute import Recomputed, recompute
from edgefl_exporter.memory.training import Training

WINDOW = 3  # saved tensors that follow each other are tried together up to so many
WORTH = 1 / 500  # of the peak: what a choice must take off it
SMOOTH = 20  # the norm of the bytes alive over all nodes; the maximum is that of infinity
BYTES_A_SECOND, MULTIPLY_ADDS_A_SECOND = 4e9, 15e9  # of one core; only their ratio chooses


@dataclass(frozen=True)
class Point:
    """One program of the curve.

    chosen      which saved tensors it makes again
    peak_bytes  the most of its own tensors alive at once, in the order that onnxruntime takes
    smooth      the same as a smooth maximum
    added_s     what the copies take, estimated
    """

    chosen: frozenset[str]
    peak_bytes: int
    smooth: float
    added_s: float
    program: Recomputed


def curve(training: Training) -> list[Point]:
    """The plain program first; each other one has a lower smooth peak than the one before it."""
    plain = _point(training, frozenset())
    assert plain is not None
    points = [plain]
    saved = training.saved
    windows = [saved[i : i + size] for size in range(1, WINDOW + 1) for i in range(len(saved) - size + 1)]
    while True:
        grown = _extended(training, points[-1], windows, plain.smooth * WORTH)
        if not grown:
            return points
        points += grown


def _extended(training: Training, start: Point, windows: list[tuple[str, ...]], worth: float) -> list[Point]:
    """Points after `start`. A score of an earlier turn is taken for the most that a window can still score."""
    points: list[Point] = []
    best = [(-float("inf"), number, -1) for number in range(len(windows))]
    now = start
    while best:
        _, number, turn = heapq.heappop(best)
        if turn == len(points):  # nobody can score more
            now = _candidate(training, now, windows[number]) or now
            points.append(now)
            continue
        found = _candidate(training, now, windows[number])
        if found is not None and now.smooth - found.smooth >= worth:
            score = (now.smooth - found.smooth) / max(found.added_s - now.added_s, 1e-6)
            heapq.heappush(best, (-score, number, len(points)))
    return points


def _candidate(training: Training, now: Point, window: tuple[str, ...]) -> Point | None:
    chosen = now.chosen.union(window)
    return None if chosen == now.chosen else _point(training, chosen)


def _point(training: Training, chosen: frozenset[str]) -> Point | None:
    program = recompute(training, chosen)
    if program is None:
        return None
    ordered = replace(program.graph, nodes=tuple(runtime_order(program.graph.nodes)))
    alive = np.array(bytes_alive(ordered, training.batch))
    peak = max(1, int(alive.max()))
    smooth = peak * float(np.sum((alive / peak) ** SMOOTH)) ** (1 / SMOOTH)
    return Point(chosen, peak, smooth, _seconds(program, training.batch), program)


def _seconds(program: Recomputed, batch: int) -> float:
    graph: Graph = replace(program.graph, nodes=program.copies)
    moved = sum(
        graph.tensors[name].size_bytes(batch) for node in graph.nodes for name in (*node.inputs, *node.outputs) if name
    )
    return moved / BYTES_A_SECOND + multiply_adds(graph, batch) / MULTIPLY_ADDS_A_SECOND
