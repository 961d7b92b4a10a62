"""Held-out examples on the aggregator: set aside for good, and the gradient of their loss against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgefl.aggregator.learned import LearnedMean
from edgefl.bundle import Bundle
from edgefl.errors import DataError, EdgeflError
from edgefl.method import Reply
from edgefl_device.data.dataset import Dataset
from edgefl_device.work.evaluate import HeldOut, evaluator, set_aside
from edgefl_exporter import export

WEIGHTS = np.array([[2.0, -1.0]], np.float32)


def make_data(size: int) -> Dataset:
    """y = [2, -1] x, disturbed."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(size, 2)).astype(np.float32)
    return Dataset(x, (x @ WEIGHTS.T + 0.1 * draw.normal(size=(size, 1))).astype(np.float32))


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Regression on two features, without a bias: state "weight" [1, 2]."""
    torch.manual_seed(0)
    programs = ("train", "gradient", "evaluate")
    out = tmp_path_factory.mktemp("linear") / "linear.bundle"
    return export(nn.Linear(2, 1, bias=False), torch.zeros(1, 2), out=out, name="linear", loss="mse", programs=programs)


def test_what_is_set_aside_is_drawn_by_the_seed_and_the_rest_is_evaluated_on() -> None:
    data = Dataset(np.arange(10, dtype=np.float32)[:, None], np.arange(10))
    aside, rest = set_aside(data, 4, seed=3)
    assert sorted([*aside.labels, *rest.labels]) == list(range(10)) and len(aside) == 4
    assert list(rest.labels) == sorted(rest.labels)
    np.testing.assert_array_equal(aside.features[:, 0], aside.labels)
    np.testing.assert_array_equal(aside.labels, set_aside(data, 4, seed=3)[0].labels)
    assert list(aside.labels) != list(set_aside(data, 4, seed=4)[0].labels)
    nothing, all_of_it = set_aside(data, 0, seed=3)
    assert len(nothing) == 0 and len(all_of_it) == 10
    with pytest.raises(DataError, match="10 held-out examples of 10 in the evaluation data leave none"):
        set_aside(data, 10, seed=3)


def test_loss_and_gradient_by_the_formula(linear: Bundle) -> None:
    """|X w - y|^2 / n and 2/n X^T (X w - y), whatever the batches."""
    data = make_data(11)
    held_out = HeldOut(linear, data, batch_size=4)
    for w in ([[0, 0]], [[1, 3]]):
        tensors = {"weight": np.array(w, np.float32), "of_another_bundle": np.zeros(3, np.float32)}
        error = data.features.astype(np.float64) @ np.array(w, np.float64).T - data.labels
        assert held_out.loss(tensors) == pytest.approx(np.mean(error**2), rel=1e-6)
        assert held_out.loss(tensors) == pytest.approx(
            evaluator(linear, data, batch_size=4)({"weight": tensors["weight"]})["evaluate.loss"]
        )
        gradient = held_out.gradient(tensors)
        assert gradient.keys() == {"weight"}
        np.testing.assert_allclose(gradient["weight"], 2 / 11 * error.T @ data.features, rtol=1e-5)


def test_weights_are_learned_with_the_bundles_own_gradient(linear: Bundle) -> None:
    fusion = LearnedMean(HeldOut(linear, make_data(50), batch_size=16))
    for name, examples, w in (("bad", 500, [[-3, 4]]), ("good", 1, WEIGHTS), ("worse", 500, [[9, 9]])):
        fusion.add(Reply(name, 0, examples, {"weight": np.array(w, np.float32)}, {}), examples)
    fused = fusion.finish()
    assert fused.weights["good"] > 0.9
    np.testing.assert_allclose(fused.tensors["weight"], WEIGHTS, atol=0.2)
    assert fused.metrics["held_out.loss"] < 0.02 < 10 < fused.metrics["held_out.start_loss"]


def test_a_model_that_has_no_finite_loss_is_an_error(linear: Bundle) -> None:
    held_out = HeldOut(linear, make_data(5), batch_size=4)
    huge = {"weight": np.full((1, 2), 1e30, np.float32)}
    for ask in (held_out.loss, held_out.gradient):
        with pytest.raises(EdgeflError, match="is inf"):
            ask(huge)
