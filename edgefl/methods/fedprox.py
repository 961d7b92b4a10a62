"""FedProx: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys
2020, arXiv:1812.06127, Algorithm 2.

    each asked device minimises  f_k(w) + (mu / 2) |w - w_t|^2   (eq. 2), here by E epochs of SGD
    w_{t+1} = the mean of FedAvg

The paper samples devices in proportion to n_k and averages them equally; here sampling is uniform and the mean is
weighted by n_k, as in its experiments with FedAvg. mu = 0 is FedAvg.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from edgefl.method import State, Task
from edgefl.methods.fedavg import FedAvg
from edgefl.names import PROXIMAL


class FedProx(FedAvg, frozen=True):
    """FedAvg whose devices are pulled to the weights that the round began with.

    For a bundle that was exported with --proximal.

    proximal        mu; None: what the bundle was exported with. The paper tries 0.001, 0.01, 0.1 and 1
    """

    proximal: Annotated[float, Meta(ge=0)] | None = None

    def tasks(self, state: State) -> tuple[Task, ...]:
        *before, train = super().tasks(state)
        return (*before, Task(program="anchor", load=("*",), steps=1, batch_size=1), train)

    def train(self, state: State) -> Task:
        task = super().train(state)
        own = {} if self.proximal is None else {PROXIMAL: self.proximal}
        return replace(task, settings=task.settings | own)
