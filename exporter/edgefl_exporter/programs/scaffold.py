"""SCAFFOLD's program `control`, which follows training: this device's new control variate, and how it changed.

Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1, option II: c_i+ = c_i - c + (x - y) / (K eta) for K steps of
plain SGD from x to y. Since x - y = eta * sum(g - c_i + c), c_i+ is the mean of the gradients g themselves. That is
computed here: it needs neither x nor eta, and loses no digits in the difference of two weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgefl.manifest import Output
from edgefl.names import CONTROL_CHANGE, CONTROL_STEPS
from edgefl_exporter.programs.program import Definition, Values, following
from edgefl_exporter.programs.supervised import Supervised
from edgefl_exporter.programs.update import control_sum, own_control


def control(task: Supervised) -> Definition:
    """The mean of the gradients that `train` has summed up becomes c_i; without a step c_i stays."""
    used = task.used

    def step(values: Values) -> dict[str, Tensor]:
        steps = values[CONTROL_STEPS]
        found: dict[str, Tensor] = {}
        for name in used:
            before = values[own_control(name)]
            mean = values[control_sum(name)] / steps.clamp(min=1)
            after = torch.where(steps > 0, mean, before)
            found |= {following(own_control(name)): after, _change(name): after - before}
        return found

    def oracle(values: Values) -> dict[str, Tensor]:
        steps = int(values[CONTROL_STEPS])
        found: dict[str, Tensor] = {}
        for name in used:
            before = values[own_control(name)]
            after = values[control_sum(name)].div(steps) if steps else before.clone()
            found |= {following(own_control(name)): after, _change(name): after - before}
        return found

    outputs = tuple(Output(_change(name), "float32", tuple(w.shape), "last") for name, w in used.items())
    writes = {own_control(name): following(own_control(name)) for name in used}
    return Definition("control", (), outputs, writes, step, oracle)


def _change(name: str) -> str:
    return f"{CONTROL_CHANGE}{name}"
