"""A method whose rounds are of two kinds, as CoDream's are: devices learn, for themselves and durably; between that
they change shared examples in small steps that need not be durable. It is in no list of edgefl.

    python tests/support/dreaming.py RUN_DIRECTORY BUNDLE BROKER      carries a run on, from wherever it is

Every number is a small binary fraction, so the order in which replies come changes no bit.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgefl.address import Address
from edgefl.aggregator.classes import DeviceClass
from edgefl.aggregator.serve import Server, Watcher
from edgefl.aggregator.settings import RoundSettings
from edgefl.aggregator.store import Store
from edgefl.bundle import read
from edgefl.method import Ask, Fused, Keep, State, Task

LEARN = Task(
    "train", feed="kept:dreams", keep=Keep("dreams", 8), steps=1, batch_size=0, settings={"learning_rate": 0.25}
)
LOOK = Task("evaluate", batch_size=0, send=("predicted",))


@dataclass(frozen=True)
class Dreaming:
    """Of the regression of toy.py: weights stay on their device, learn from its data and from the kept examples.

    In each of `steps` rounds the examples x are changed against the mean of what the devices predict for them. `told`:
    what is announced then, all of x, or only by how much it changed.
    """

    epochs: int = 2
    steps: int = 5
    told: str = "examples"

    def start(self) -> State:
        x = np.array([[1, 0], [0, 1], [1, -1], [2, 1]], np.float32)
        return State(0, {"x": x, "y": np.array([1, -1, 0, 2], np.float32), "change": np.zeros_like(x)})

    def ask(self, state: State) -> Ask | None:
        epoch, step = divmod(state.round, self.steps + 1)
        x, y, change = (state.tensors[name] for name in ("x", "y", "change"))
        if epoch == self.epochs:
            return None
        if step == 0:
            own = Task("train", batch_size=0, settings={"learning_rate": 0.25})
            return Ask((own, LEARN), {"x": x, "y": y}, weight="equal")
        if self.told == "examples":
            task, announced = _with(LOOK, feed="announced"), {"x": x, "y": y}
        else:
            keep = Keep("now", len(x), add=step > 1)
            task = _with(LOOK, feed="kept:now", keep=keep)
            announced = {"x": change} if keep.add else {"x": x, "y": y}
        return Ask((task,), announced, weight="equal", durable=False)

    def advance(self, state: State, fused: Fused) -> State:
        tensors = dict(state.tensors)
        if "predicted" in fused.tensors:
            tensors["change"] = -fused.tensors["predicted"][:, None] * np.array([[0.5, 0.25]], np.float32)
            tensors["x"] = state.tensors["x"] + tensors["change"]
        return State(state.round + 1, tensors)


def _with(task: Task, **changes: object) -> Task:
    return Task(**{name: getattr(task, name) for name in task.__struct_fields__} | changes)  # type: ignore[arg-type]


def main(directory: Path, bundle: Path, broker: str) -> None:
    store = Store.open(directory) if (directory / "run.json").exists() else Store.create(directory, "")
    Server(
        "dreaming",
        [DeviceClass("all", read(bundle))],
        Dreaming(),
        store,
        Address.parse(broker),
        settings=RoundSettings(min_devices=3, quorum=1.0, deadline_s=60.0),
        seed=0,
        watcher=Watcher(progress=lambda line: print(line, file=sys.stderr, flush=True)),
    ).serve()
    store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
