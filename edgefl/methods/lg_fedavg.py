"""LG-FedAvg: Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency, "Think Locally, Act Globally: Federated
Learning with Local and Global Representations", 2020, arXiv:2001.01523, Algorithm 1.

    device m has layers of its own that turn data into a representation, and the layers above them, which are shared
    round: the server announces the upper layers; the device trains both together and sends only the upper ones, n_m
    upper = sum_m (n_m / sum n) upper_m;   the lower layers never leave

The other way about, a shared body under a head of one's own, is FedPer (Arivazhagan et al. 2019, arXiv:1912.00818):
FedAvg with `share` naming the body.
"""

from __future__ import annotations

from edgefl.methods.fedavg import FedAvg


class LgFedAvg(FedAvg, frozen=True):
    """FedAvg of the named layers, the model's head; its body is each device's own.

    With `evaluate`, a device evaluates its personal model: the announced head on its own body. The paper starts from
    weights that FedAvg has trained; here everybody starts from the bundle's.

    share           globs of the shared layers' tensors: "head.*"
    """

    share: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.share:
            raise ValueError('share is missing: which layers are shared, for example share = ["head.*"]')
