"""Devices without test data in a run that evaluates on the devices: they train, and measure nothing."""

from __future__ import annotations

import math

from descent import ROUNDS, MakeWorld, assert_exact, fedavg, trained_once_a_round

from edgefl.bundle import Bundle
from edgefl.method import Reply

NONE = {"test_examples": 0}


def test_one_of_them_trains_and_only_its_evaluation_is_left_out(regression: Bundle, make_world: MakeWorld) -> None:
    method = fedavg(regression, evaluate=True)
    world = make_world(regression, method=method, capabilities={"pi-2": NONE})
    world.run()
    assert_exact(world)  # its training counts, in every round
    assert trained_once_a_round(world)
    for record in world.records:
        assert record.evaluated == 2
        assert record.metrics["evaluate.examples"] == 4  # pi-1 and pi-3 have two each
        measured = [record.measured[name]["evaluate.loss"] for name in ("pi-1", "pi-3")]
        assert record.loss is not None and math.isclose(record.loss, sum(measured) / 2)
        assert "evaluate.loss" not in record.measured["pi-2"]
    assert world.events("no test data") == [("pi-2", "its training counts, its evaluation is left out")]


def test_a_fleet_of_them_ends_and_nobody_evaluates(regression: Bundle, make_world: MakeWorld) -> None:
    method = fedavg(regression, evaluate=True)
    world = make_world(regression, method=method, capabilities=dict.fromkeys(("pi-1", "pi-2", "pi-3"), NONE))
    world.run()
    assert_exact(world)
    assert [(record.evaluated, record.loss) for record in world.records] == [(0, None)] * ROUNDS


def test_where_nobody_is_asked_to_evaluate_nothing_is_said(regression: Bundle, make_world: MakeWorld) -> None:
    world = make_world(regression, capabilities={"pi-2": NONE})
    world.run()
    assert world.events("no test data") == []


def by_loss(reply: Reply) -> float:
    return 1 / reply.metrics["evaluate.loss"]


def test_a_weight_rule_that_reads_what_was_not_measured_refuses_in_one_line(
    regression: Bundle, make_world: MakeWorld
) -> None:
    method = fedavg(regression, evaluate=True, weight=by_loss)
    world = make_world(regression, method=method, capabilities={"pi-2": NONE})
    world.run(lambda: bool(world.events("failed")))
    assert world.events("failed") == [("pi-2", "weight rule 'by_loss' reads 'evaluate.loss', which was not sent")]
