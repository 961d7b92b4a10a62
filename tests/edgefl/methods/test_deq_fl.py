"""DEQ-FL: what it asks, and what its weights make of replies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgefl.aggregator.fusion import fusing
from edgefl.method import Reply, Task
from edgefl.methods.deq_fl import DeqFl
from edgefl.methods.fedavg import FedAvg

W = {"w": np.zeros(2, np.float32)}


def tasks(**settings: Any) -> tuple[Task, ...]:
    method = DeqFl(W, evaluate=True, learning_rate=0.5, settings={"clip_norm": 1.0}, **settings)
    ask = method.ask(method.start())
    assert ask is not None and ask.weight == "examples/residual"
    return ask.tasks


def test_the_budget_of_a_run_is_for_training_and_evaluation() -> None:
    evaluate, train = tasks(max_steps=8, tolerance=0.01)
    assert evaluate.settings == {"max_steps": 8.0, "tolerance": 0.01}
    assert train.settings == {"max_steps": 8.0, "tolerance": 0.01, "learning_rate": 0.5, "clip_norm": 1.0}


def test_without_one_the_bundles_own_counts() -> None:
    evaluate, train = tasks()
    assert evaluate.settings == {}
    assert train.settings == {"learning_rate": 0.5, "clip_norm": 1.0}


def reply(name: str, examples: int, w: float, residual: float) -> Reply:
    return Reply(name, 0, examples, {"w": np.full(2, w, np.float32)}, {"train.residual": residual})


def fused(method: FedAvg, *replies: Reply) -> Any:
    ask = method.ask(method.start())
    assert ask is not None
    fusion, rule = fusing(ask)
    for one in replies:
        fusion.add(one, rule.weigh(one))
    return method.advance(method.start(), fusion.finish()).tensors["w"]


def test_who_solved_better_counts_more() -> None:
    """100/0.5 : 300/0.1 = 1 : 15, so (1*32 + 15*16) / 16 = 17"""
    new = fused(DeqFl(W), reply("few steps", 100, 32, 0.49), reply("many", 300, 16, 0.09))
    np.testing.assert_allclose(new, [17, 17], rtol=1e-6)


@pytest.mark.parametrize("left", [0.0, 0.3])
def test_with_equal_budgets_it_is_fedavg(left: float) -> None:
    replies = [reply(name, n, w, left) for name, n, w in (("a", 7, 0.3), ("b", 500, -2.7), ("c", 31, 11.1))]
    np.testing.assert_array_max_ulp(fused(DeqFl(W), *replies), fused(FedAvg(W), *replies), 1)
