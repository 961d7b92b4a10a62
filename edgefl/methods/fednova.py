"""FedNova: Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020, arXiv:2007.07481, eq. 8 and Algorithm 1.

    device k takes tau_k steps from x with learning rate eta; where they are of SGD with momentum rho, its change is
        x_k - x = -eta sum_j a_kj g_kj,   |a_k|_1 = (tau_k - rho (1 - rho^tau_k) / (1 - rho)) / (1 - rho)
    d_k = (x - x_k) / (eta |a_k|_1), its mean gradient;   p_k = n_k / sum n
    x <- x - tau_eff sum_k p_k eta d_k,   tau_eff = sum_k p_k |a_k|_1

Without momentum |a_k|_1 = tau_k. FedAvg minimises another function where devices differ in tau_k: who steps more counts
more. Where all take the same number of steps, this is FedAvg.

Replies are weighted by p_k / |a_k|_1, so their mean is sum_k w_k (x_k - x) with w_k = c p_k / |a_k|_1 and c = sum_k
w_k |a_k|_1. Eq. 8 is that mean times tau_eff / c = sum_k w_k |a_k|_1^2 / c^2.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta
from msgspec.structs import replace

from edgefl.method import Ask, Fused, Reply, State
from edgefl.methods.fedopt import FedOpt


class FedNova(FedOpt, frozen=True):
    """FedAvg in which a device's steps count as their mean, however many it takes.

    weight                  p_k: by examples, or equal
    momentum                rho of the bundle's SGD, without Nesterov. Other optimizers have other a_k
    server_learning_rate    of the step that eq. 8 makes; the paper's 1
    """

    weight: Literal["examples", "equal"] = "examples"
    fusion: Literal["mean"] = "mean"
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    server_learning_rate: Annotated[float, Meta(gt=0)] = 1.0

    def ask(self, state: State) -> Ask | None:
        ask = super().ask(state)
        return ask and replace(ask, weight=self.normalized)

    def normalized(self, reply: Reply) -> float:
        """p_k / |a_k|_1, but for a factor that all devices share. Raises ValueError for a reply without steps."""
        if reply.steps == 0:
            raise ValueError("the reply says no steps")
        return (reply.examples if self.weight == "examples" else 1) / self.norm(reply.steps)

    def norm(self, steps: int) -> float:
        """|a_k|_1 of so many steps."""
        rho = self.momentum
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)

    def advance(self, state: State, fused: Fused) -> State:
        after = super().advance(state, fused)
        parts = [(w, self.norm(fused.steps[device])) for device, w in fused.weights.items()]
        c = sum(w * a for w, a in parts)
        factor = self.server_learning_rate * sum(w * a * a for w, a in parts) / c**2
        tensors = dict(after.tensors)
        for name in self.optimized:
            x = state.tensors[name]
            tensors[name] = (x + factor * self.change(state, fused, name)).astype(x.dtype)
        return State(after.round, tensors, after.numbers)
