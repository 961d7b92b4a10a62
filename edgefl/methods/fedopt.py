"""FedAvg's mean change as the gradient of an optimizer on the aggregator.

FedAvgM: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
2019, arXiv:1909.06335.

    devices train from x_t as for FedAvg;  d_t = the mean of (x_k - x_t) over the devices that answered
    v_t = beta v_{t-1} + d_t                                            v_{-1} = 0
    x_{t+1} = x_t + eta v_t

FedAdagrad, FedAdam and FedYogi: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated
Optimization", ICLR 2021, arXiv:2003.00295, Algorithm 2.

    m_t = beta_1 m_{t-1} + (1 - beta_1) d_t                             m_{-1} = 0
    v_t = v_{t-1} + d_t^2                                               FedAdagrad, v_{-1} = tau^2
    v_t = beta_2 v_{t-1} + (1 - beta_2) d_t^2                           FedAdam
    v_t = v_{t-1} - (1 - beta_2) d_t^2 sign(v_{t-1} - d_t^2)            FedYogi
    x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau)

As in the paper there is no correction of the moments' bias: m starts from zero, so the first steps are short. Other
libraries correct it, or start v from zero; their figures for the same settings are others.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from edgefl.manifest import select
from edgefl.method import Fused, State
from edgefl.methods.fedavg import FedAvg
from edgefl.tensors import Array

VELOCITY, FIRST, SECOND = "velocity.", "first_moment.", "second_moment."


class FedOpt(FedAvg, frozen=True):
    """FedAvg that tells the parameters, which the aggregator moves in its own way, from what is only averaged.

    averaged                globs of shared tensors that are only averaged: statistics are no parameters, and a variance
                            must not become negative. The papers' models have none
    """

    averaged: tuple[str, ...] = ("*running_mean", "*running_var")
    send_as: Literal["value", "delta"] = "delta"

    @property
    def optimized(self) -> list[str]:
        """The tensors that are more than averaged."""
        plain = select(self.shared, self.averaged)
        return [name for name in self.shared if name not in plain]


class FedAvgM(FedOpt, frozen=True):
    """FedAvg with momentum on the aggregator.

    server_learning_rate    eta
    momentum                beta. Steps grow to 1 / (1 - beta) of FedAvg's where changes go on in one direction
    """

    server_learning_rate: Annotated[float, Meta(gt=0)] = 1.0
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9

    def start(self) -> State:
        state = super().start()
        still = {VELOCITY + name: np.zeros_like(state.tensors[name]) for name in self.optimized}
        return State(state.round, {**state.tensors, **still})

    def advance(self, state: State, fused: Fused) -> State:
        after = super().advance(state, fused)
        tensors = dict(after.tensors)
        for name in self.optimized:
            x = state.tensors[name]
            v = self.momentum * state.tensors[VELOCITY + name] + self.change(state, fused, name)
            tensors[name] = (x + self.server_learning_rate * v).astype(x.dtype)
            tensors[VELOCITY + name] = v.astype(x.dtype)
        return State(after.round, tensors, after.numbers)


class FedAdagrad(FedOpt, frozen=True):
    """FedAvg's mean as the gradient of Adagrad on the aggregator.

    server_learning_rate    eta. The paper tunes it for each task, between 0.001 and 10
    beta_1                  of the first moment; 0: none
    tau                     bounds the step: a change far below it moves eta / tau times as far as FedAvg's (times
                            1 - beta_1 at first)
    """

    server_learning_rate: Annotated[float, Meta(gt=0)] = 0.01
    beta_1: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    tau: Annotated[float, Meta(gt=0)] = 1e-3

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
        return v + squared


class FedAdam(FedAdagrad, frozen=True):
    """FedAvg's mean as the gradient of Adam on the aggregator.

    beta_1, beta_2          the paper's 0.9 and 0.99
    """

    beta_1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, Meta(ge=0, lt=1)] = 0.99

    def second_moment(self, v: Array, squared: Array) -> Array:
        return self.beta_2 * v + (1 - self.beta_2) * squared


class FedYogi(FedAdam, frozen=True):
    """FedAdam whose second moment changes by no more than the new square, so that it forgets large ones slowly."""

    def second_moment(self, v: Array, squared: Array) -> Array:
        moved: Array = v - (1 - self.beta_2) * squared * np.sign(v - squared)
        return moved
