"""What a reply may say: metrics that were asked for, in numbers that can be."""

from __future__ import annotations

import math

import pytest

from edgefl.aggregator.checks import LARGEST_METRIC, metrics_of, reply_metrics
from edgefl.aggregator.classes import Examples
from edgefl.bundle import Bundle
from edgefl.method import Ask, Task

TRAIN = Ask((Task("train"),), {})
GOOD = {"train.loss": 0.5, "train.examples": 4.0}


def heard(bundle: Bundle, ask: Ask = TRAIN, examples: Examples | None = None, **metrics: float) -> dict[str, float]:
    said = {name.replace("_", ".", 1): value for name, value in metrics.items()}
    return metrics_of(ask, bundle.manifest, GOOD | said, examples)


def test_metrics_that_nobody_asked_for_are_left_out(regression: Bundle) -> None:
    """Of another program, of an output that is none, and of no program."""
    assert heard(regression) == GOOD
    assert heard(regression, evaluate_loss=0.1, train_accuracy=1.0, w=1.0) == GOOD
    assert reply_metrics(TRAIN, regression.manifest) == {"train.loss", "train.total", "train.examples"}


def test_metrics_of_every_task_of_the_ask_are_heard(regression: Bundle) -> None:
    both = Ask((Task("train"), Task("evaluate", feed="test")), {})
    assert heard(regression, both, evaluate_loss=0.1) == {"evaluate.loss": 0.1, **GOOD}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2 * LARGEST_METRIC, -2 * LARGEST_METRIC])
def test_what_adds_up_to_no_number_is_left_out(regression: Bundle, value: float) -> None:
    assert heard(regression, train_loss=value) == {"train.examples": 4.0}
    assert heard(regression, train_loss=-3.0) == {"train.loss": -3.0, "train.examples": 4.0}


@pytest.mark.parametrize(("value", "counts"), [(0.0, True), (4.0, True), (5.0, False), (-1.0, False)])
def test_nobody_measures_on_more_examples_than_it_states(regression: Bundle, value: float, counts: bool) -> None:
    found = heard(regression, examples=Examples(4, 100), train_examples=value)
    assert ("train.examples" in found) == counts
