"""DEQ-FL: Gkillas, Ampeliotis, Berberidis, "Deep Equilibrium Models Meet Federated Learning", 2023, arXiv:2305.18646.

    everybody's model is one block, applied until its output stands still (an equilibrium), so it is small to send
    device k solves with its own budget of K_k steps and returns theta_k, n_k and how far its solve came
    theta = sum_k a_k theta_k;   a_k >= 0, sum_k a_k = 1, more for models of better quality

The paper's: equilibrium models for federated learning, devices of different compute, a weighted mean that accounts for
the quality of what they send. Ours: the weights themselves, here n_k / (epsilon + residual_k) by default, and the
gradient through a few phantom steps.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta
from msgspec.structs import replace

from edgefl.method import State, Task
from edgefl.methods.fedavg import FedAvg
from edgefl.names import MAX_STEPS, TOLERANCE


class DeqFl(FedAvg, frozen=True):
    """FedAvg of equilibrium models, weighted by how well each device solved.

    max_steps       K, the most steps of a solve; None: what the bundle was exported with
    tolerance       the relative residual at which an example is solved; None: what the bundle was exported with

    A device's own max_steps and tolerance, of its profile or its class, count more than these.
    """

    weight: str | dict[str, Any] = "examples/residual"
    max_steps: Annotated[int, Meta(ge=1)] | None = None
    tolerance: Annotated[float, Meta(ge=0)] | None = None

    def tasks(self, state: State) -> tuple[Task, ...]:
        given = {MAX_STEPS: self.max_steps, TOLERANCE: self.tolerance}
        budget = {name: float(value) for name, value in given.items() if value is not None}
        return tuple(replace(task, settings=budget | task.settings) for task in super().tasks(state))
