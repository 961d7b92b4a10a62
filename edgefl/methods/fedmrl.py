"""FedMRL: Yi, Yu, Ren, Wang, Liu, Li, "Federated Model Heterogeneous Matryoshka Representation Learning", NeurIPS
2024, arXiv:2406.00488, Algorithm 1.

    device k has a small model theta like everybody's, a local model omega_k of its own and a projector phi_k
    round: the server announces theta; the device trains theta, omega_k and phi_k together and sends theta_k, n_k
    theta = sum_k (n_k / sum n) theta_k;   omega_k and phi_k never leave
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from edgefl.methods.fedavg import FedAvg
from edgefl.names import SMALL


class FedMRL(FedAvg, frozen=True):
    """FedAvg of the small model alone, for bundles exported with --method fedmrl.

    With `evaluate`, a device evaluates its personal model: the announced small model with its own local model and
    projector, on its own test data. Epochs, batch size and learning rate are the paper's (its momentum of 0.9, weight
    decay of 0.001 and clipping to 50 belong to the export); it runs 500 rounds with 10 of 100 devices in each.
    """

    share: tuple[str, ...] = (f"{SMALL}*",)
    epochs: Annotated[int, Meta(ge=1)] = 10
    batch_size: Annotated[int, Meta(ge=0)] = 512
    learning_rate: Annotated[float, Meta(gt=0)] | None = 0.01
