"""FedDyn: Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, "Federated Learning Based on Dynamic
Regularization", ICLR 2021, arXiv:2111.04263, Algorithm 1.

    each asked device k minimises  L_k(y) - <g_k, y> + (alpha / 2) |y - theta|^2,  here by E epochs of SGD, and sends
        y as theta_k;  g_k <- g_k - alpha (theta_k - theta) stays on the device, g_k = 0 at first
    h <- h - alpha / m sum_{k in P} (theta_k - theta)           m all devices, P those that answered, h = 0 at first
    theta <- 1 / |P| sum_{k in P} theta_k - h / alpha

Where it comes to rest all devices agree, and in a minimum of the mean of their losses. Means are over devices, not
examples.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from msgspec.structs import replace

from edgefl.method import Fused, State, Task
from edgefl.methods.fedopt import FedOpt
from edgefl.methods.scaffold import answered_part
from edgefl.names import PROXIMAL

H = "feddyn.h."


class FedDyn(FedOpt, frozen=True, kw_only=True):
    """FedAvg whose devices and aggregator remember how far they were apart, and make up for it.

    For a bundle that was exported with --method feddyn.

    devices     m, all devices that may ever be asked: they are h's denominator
    alpha       of both sides, for the whole run. The paper tries 0.001, 0.01, 0.1 and 1
    """

    devices: Annotated[int, Meta(ge=1)]
    alpha: Annotated[float, Meta(gt=0)] = 0.01
    weight: Literal["equal"] = "equal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share != ("*",):
            raise ValueError("share: feddyn regularises every parameter, so all of them travel")

    def start(self) -> State:
        state = super().start()
        h = {H + name: np.zeros_like(state.tensors[name]) for name in self.optimized}
        return State(state.round, {**state.tensors, **h})

    def tasks(self, state: State) -> tuple[Task, ...]:
        *before, train = super().tasks(state)
        anchor = Task(program="anchor", load=("*",), steps=1, batch_size=1)
        return (*before, anchor, train, Task(program="dynamic", steps=1, batch_size=1))

    def train(self, state: State) -> Task:
        task = super().train(state)
        return replace(task, settings=task.settings | {PROXIMAL: self.alpha})

    def advance(self, state: State, fused: Fused) -> State:
        """Raises ConfigError when more devices answer than there are."""
        part = answered_part(fused, self.devices)
        after = super().advance(state, fused)
        tensors = dict(after.tensors)
        for name in self.optimized:
            theta, change = state.tensors[name], self.change(state, fused, name)
            h = state.tensors[H + name] - self.alpha * part * change
            tensors[name] = (theta + change - h / self.alpha).astype(theta.dtype)
            tensors[H + name] = h.astype(theta.dtype)
        return State(after.round, tensors, after.numbers)
