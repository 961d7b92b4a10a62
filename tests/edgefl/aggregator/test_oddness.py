"""Which device is far from the others, and which only differs as honest devices do."""

from __future__ import annotations

import math

from descent import MakeWorld, fedavg

from edgefl.aggregator.oddness import Oddness
from edgefl.bundle import Bundle

ALL = {"a": "cnn", "b": "cnn", "c": "cnn"}


def losses(**by_device: float | None) -> dict[str, dict[str, float | None]]:
    return {device: {"train.loss": loss} for device, loss in by_device.items()}


def test_values_that_were_not_scaled_show_in_the_loss() -> None:
    assert Oddness().of(losses(a=2.0, b=2.2, c=8841), {}, ALL) == {"c": "train.loss 8841, others 2.1"}


def test_so_does_a_large_update() -> None:
    assert Oddness().of({}, {"a": 1.0, "b": 2.0, "c": 40.0}, ALL) == {"c": "norm of its update 40, others 1.5"}
    both = Oddness().of(losses(a=2, b=2, c=900), {"a": 1.0, "b": 1.0, "c": 99.0}, ALL)
    assert both == {"c": "train.loss 900, others 2; norm of its update 99, others 1"}


def test_honest_devices_with_other_classes_are_not_odd() -> None:
    """Two devices of one class each have learned it by heart; the third has all ten, and is no worse than at first."""
    oddness = Oddness()
    assert oddness.of(losses(a=2.3, b=2.4, c=2.2), {}, ALL) == {}
    assert oddness.of(losses(a=0.001, b=0.002, c=1.5), {}, ALL) == {}
    assert oddness.of({}, {"a": 0.1, "b": 0.2, "c": 0.9}, ALL) == {}


def test_a_resume_knows_what_the_loss_was_at_first() -> None:
    late = losses(a=0.001, b=0.002, c=1.5)
    assert Oddness(losses(a=2.3, b=2.4, c=2.2)).of(late, {}, ALL) == {}
    assert Oddness().of(late, {}, ALL) == {"c": "train.loss 1.5, others 0.0015"}


def test_where_the_others_differ_much_themselves_nobody_is_odd() -> None:
    four = {**ALL, "d": "cnn"}
    assert Oddness().of(losses(a=0.01, b=5, c=30), {}, ALL) == {}
    assert Oddness().of({}, {"a": 1.0, "b": 8.0, "c": 90.0, "d": 95.0}, four) == {}


def test_devices_are_compared_with_those_of_their_bundle() -> None:
    kinds = {"a": "cnn", "b": "cnn", "c": "cnn", "x": "deq", "y": "deq"}
    found = Oddness().of(losses(a=1, b=1, c=1, x=500, y=500), {"x": 99.0, "y": 1.0}, kinds)
    assert found == {}  # of two nobody can say which is the odd one


def test_what_is_not_measured_is_not_compared() -> None:
    found = Oddness().of({"a": {}, **losses(b=None, c=8841)}, {"c": math.inf}, ALL)
    assert found == {}


def test_a_run_marks_it_in_the_record_and_says_it_once(regression: Bundle, make_world: MakeWorld) -> None:
    world = make_world(regression, method=fedavg(regression, learning_rate=2.0**-20))
    odd = world.nodes["pi-3"]._data
    odd.labels[:] = 64.0  # it measures in other units
    world.run()
    for record in world.records:
        assert record.odd.keys() == {"pi-3"} and "train.loss" in record.odd["pi-3"]
        assert record.norms.keys() == {"pi-1", "pi-2", "pi-3"} and record.norms["pi-3"] > 10 * record.norms["pi-1"]
    [(device, text)] = world.events("odd")
    assert device == "pi-3" and text == world.records[0].odd["pi-3"]
