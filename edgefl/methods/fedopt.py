"""FedAdam and FedYogi: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated
Optimization", ICLR 2021, arXiv:2003.00295, Algorithm 2.

    devices train from x_t as for FedAvg;  d_t = the mean of (x_k - x_t) over the devices that answered
    m_t = beta_1 m_{t-1} + (1 - beta_1) d_t                             m_{-1} = 0
    v_t = beta_2 v_{t-1} + (1 - beta_2) d_t^2                           FedAdam, v_{-1} = tau^2
    v_t = v_{t-1} - (1 - beta_2) d_t^2 sign(v_{t-1} - d_t^2)            FedYogi
    x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau)

As in the paper there is no correction of the moments' bias: m starts from zero, so the first steps are short. Other
libraries correct it, or start v from zero; their figures for the same settings are others.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from edgefl.bundle import select
from edgefl.method import Fused, State
from edgefl.methods.fedavg import FedAvg
from edgefl.tensors import Array

FIRST, SECOND = "first_moment.", "second_moment."


class FedAdam(FedAvg, frozen=True):
    """FedAvg's mean as the gradient of Adam on the aggregator.

    server_learning_rate    eta. The paper tunes it for each task, between 0.001 and 10
    beta_1, beta_2, tau     the paper's 0.9, 0.99 and 0.001. tau bounds the step: a change far below it moves eta / tau
                            times as far as FedAvg's (times 1 - beta_1 at first)
    averaged                globs of shared tensors that are only averaged: statistics are no parameters, and a variance
                            must not become negative. The paper's models have none
    """

    server_learning_rate: Annotated[float, Meta(gt=0)] = 0.01
    beta_1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, Meta(ge=0, lt=1)] = 0.99
    tau: Annotated[float, Meta(gt=0)] = 1e-3
    averaged: tuple[str, ...] = ("*running_mean", "*running_var")
    send_as: Literal["value", "delta"] = "delta"

    @property
    def optimized(self) -> list[str]:
        """The tensors that have moments."""
        plain = select(self.shared, self.averaged)
        return [name for name in self.shared if name not in plain]

    def start(self) -> State:
        state = super().start()
        moments: dict[str, Array] = {}
        for name in self.optimized:
            moments[FIRST + name] = np.zeros_like(state.tensors[name])
            moments[SECOND + name] = np.full_like(state.tensors[name], self.tau**2)
        return State(state.round, {**state.tensors, **moments})

    def advance(self, state: State, fused: Fused) -> State:
        after = super().advance(state, fused)
        tensors = dict(after.tensors)
        for name in self.optimized:
            x = state.tensors[name]
            d = self.change(state, fused, name).astype(x.dtype)
            m = self.beta_1 * state.tensors[FIRST + name] + (1 - self.beta_1) * d
            v = self.second_moment(state.tensors[SECOND + name], d * d)
            moved = x + self.server_learning_rate * m / (np.sqrt(v) + self.tau)
            tensors |= {n: a.astype(x.dtype) for n, a in ((name, moved), (FIRST + name, m), (SECOND + name, v))}
        return State(after.round, tensors, after.numbers)

    def second_moment(self, v: Array, squared: Array) -> Array:
        """v_t from v_{t-1} and the square of d_t."""
        return self.beta_2 * v + (1 - self.beta_2) * squared


class FedYogi(FedAdam, frozen=True):
    """FedAdam whose second moment changes by no more than the new square, so that it forgets large ones slowly."""

    def second_moment(self, v: Array, squared: Array) -> Array:
        moved: Array = v - (1 - self.beta_2) * squared * np.sign(v - squared)
        return moved
