"""FedDyn's program `dynamic`, which follows training: what this device remembers of how far it went.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, "Federated Learning Based on Dynamic Regularization", ICLR
2021, arXiv:2111.04263, Algorithm 1. A device minimises L_k(w) - <g_k, w> + (alpha / 2) |w - anchor|^2, and then takes
alpha (w - anchor) from g_k. Since

    -<g_k, w> + (alpha / 2) |w - anchor|^2  =  (alpha / 2) |w - (anchor + g_k / alpha)|^2  + what does not depend on w

it is FedProx's term towards a place beside the anchor. The state is that shift, `own_shift.NAME` = g_k / alpha: then
training needs no second term, and this program no alpha. A run keeps one alpha.
"""

from __future__ import annotations

from torch import Tensor

from edgefl_exporter.programs.program import Definition, Values, following
from edgefl_exporter.programs.supervised import Supervised
from edgefl_exporter.programs.update import anchor, own_shift


def dynamic(task: Supervised) -> Definition:
    """The shift becomes smaller by how far the parameters are from the anchor."""
    used = task.used

    def step(values: Values) -> dict[str, Tensor]:
        return {
            following(own_shift(name)): values[own_shift(name)] - (values[name] - values[anchor(name)]) for name in used
        }

    def oracle(values: Values) -> dict[str, Tensor]:
        found = {}
        for name in used:
            moved = values[name].clone().sub_(values[anchor(name)])
            found[following(own_shift(name))] = values[own_shift(name)].clone().sub_(moved)
        return found

    writes = {own_shift(name): following(own_shift(name)) for name in used}
    return Definition("dynamic", (), (), writes, step, oracle)
