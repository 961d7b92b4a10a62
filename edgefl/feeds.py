"""Where a task's examples come from and what may be kept of them: what both sides check, whatever the bundle."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgefl.method import Task

FEEDS = ("train", "test", "announced", "noise")
KEPT = "kept:"
BUFFER = re.compile(r"[a-z0-9_-]{1,36}")  # of a folder's name: nothing that leads anywhere else


def buffer_of(feed: str) -> str | None:
    """BUFFER of the feed "kept:BUFFER"; None of any other."""
    return feed.removeprefix(KEPT) if feed.startswith(KEPT) else None


def fault(tasks: Sequence[Task]) -> str | None:
    """What is wrong with the feeds of an ask's tasks and what they keep: one line that names the task; None when
    nothing is."""
    read: set[str] = set()
    kept: set[str] = set()
    for number, task in enumerate(tasks, 1):
        found = _fault(task, read, kept)
        if found:
            return f"task {number} ({task.program!r}): {found}"
        if (buffer := buffer_of(task.feed)) is not None:
            read.add(buffer)
        if task.keep is not None:
            kept.add(task.keep.buffer)
    return None


def _fault(task: Task, read: set[str], kept: set[str]) -> str | None:
    """`read`, `kept`: the buffers of the tasks before."""
    buffer, keep = buffer_of(task.feed), task.keep
    if buffer is None and task.feed not in FEEDS:
        return f"unknown feed {task.feed!r}; expected 'train', 'test', 'announced', 'noise' or 'kept:BUFFER'"
    for name in (buffer, None if keep is None else keep.buffer):
        if name is not None and not BUFFER.fullmatch(name):
            return f"a buffer cannot be called {name!r}; expected 1 to 36 of a-z, 0-9, _ and -"
    if task.feed == "noise" and task.seed is None:
        return "feed 'noise' needs a seed"
    if task.feed == "noise" and task.batch_size < 1:
        return f"feed 'noise' is batch_size examples, and batch_size is {task.batch_size}"
    if keep is None:
        return None
    if keep.capacity < 1:
        return f"keep: capacity is {keep.capacity}; expected 1 or more"
    if task.feed in ("train", "test"):
        return f"keep: the device's own {task.feed!r} data is not kept a second time"
    if buffer is not None and buffer != keep.buffer:
        return f"keep: into {keep.buffer!r}, but the task is fed {buffer!r}"
    if keep.add and buffer is None:
        return f"keep: what is added to {keep.buffer!r} is a change, not examples; feed 'kept:{keep.buffer}'"
    if keep.buffer in kept:
        return f"keep: an earlier task of this ask keeps into {keep.buffer!r} already"
    if keep.buffer in read:
        # Done again, that task would find what this one has kept meanwhile.
        return f"keep: an earlier task of this ask is fed {keep.buffer!r}; keep first"
    return None
