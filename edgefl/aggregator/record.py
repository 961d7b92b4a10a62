"""What is noted of a round: a line of a run's metrics.jsonl, and what its report is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated

import msgspec
from msgspec import Meta

from edgefl.aggregator.rounds import RoundDone

Count = Annotated[int, Meta(ge=0, le=2**53)]
Metrics = dict[str, float | None]  # None: it was not finite, for which JSON has no word


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One round that is done.

    round       of the run, from 1
    replies     that were fused; of so many `asked`, in so many `attempts`
    examples    training examples of the devices that replied
    bytes_up, bytes_down     on the wire, MQTT's headers included; down counts a broadcast once for each device
    seconds     from the announcement to the fusion
    elapsed_s   of the run when the round was done, over all its starts, without the time between them
    devices     whose replies were fused
    weights     how much each of them counted; they sum to 1
    steps       of the optimizer that each of them took
    metrics     "PROGRAM.OUTPUT" -> mean over devices, or sum of counts; "PROGRAM.accuracy" where answers are counted
    measured    the metrics of each device; of a durable round
    norms       of what the reply of each of them changes; of a durable round
    odd         what is far from the others about a device; of a durable round (edgefl/aggregator/oddness.py)
    loss, accuracy      of the fused model on the aggregator's data, else what devices say of their own; None: nobody
                evaluated
    evaluated   how many of the devices measured the model on test data of their own
    durable     whether the state after it is on disk
    """

    round: Count
    replies: Count
    asked: Count
    attempts: Count
    examples: Count
    bytes_up: Count
    bytes_down: Count
    bytes_up_by_device: dict[str, Count]
    seconds: float
    elapsed_s: float
    devices: list[str]
    weights: dict[str, float | None]
    steps: dict[str, Count] = {}
    metrics: Metrics = {}
    measured: dict[str, Metrics] = {}
    norms: Metrics = {}
    odd: dict[str, str] = {}
    loss: float | None = None
    accuracy: float | None = None
    evaluated: Count = 0
    durable: bool = True


@dataclass
class Traffic:
    """MQTT bytes of one round, payload and packet header. Down counts a broadcast once for each device that
    needed it."""

    up: dict[str, int] = field(default_factory=dict)
    down: int = 0

    @property
    def up_total(self) -> int:
        return sum(self.up.values())

    def __add__(self, other: Traffic) -> Traffic:
        devices = self.up.keys() | other.up.keys()
        up = {device: self.up.get(device, 0) + other.up.get(device, 0) for device in devices}
        return Traffic(up, self.down + other.down)


def record_of(
    done: RoundDone,
    traffic: Traffic,
    evaluated: Mapping[str, float],
    elapsed_s: float,
    odd: Mapping[str, str] = MappingProxyType({}),
) -> Record:
    """The record of a round. `evaluated`: metrics of the fused model on the aggregator's data; empty where nobody
    evaluates.

    Of a round that need not be durable only what is short: a run may have thousands.
    """
    fused = done.fused
    metrics = _with_accuracies(fused.metrics)
    held_out = _with_accuracies(evaluated) if evaluated else metrics
    return Record(
        round=done.state.round,
        replies=len(fused.devices),
        asked=done.asked,
        attempts=done.attempts,
        examples=fused.examples,
        bytes_up=traffic.up_total,
        bytes_down=traffic.down,
        bytes_up_by_device=dict(traffic.up),
        seconds=round(done.seconds, 4),
        elapsed_s=round(elapsed_s, 4),
        devices=list(fused.devices),
        weights={device: round(weight, 6) for device, weight in fused.weights.items()},
        steps=dict(fused.steps) if done.durable else {},
        metrics=metrics,
        measured={device: dict(metrics) for device, metrics in fused.measured.items()} if done.durable else {},
        norms={device: float(f"{norm:.6g}") for device, norm in done.norms.items()} if done.durable else {},
        odd=dict(odd) if done.durable else {},
        loss=held_out.get("evaluate.loss") if done.durable else None,
        accuracy=held_out.get("evaluate.accuracy") if done.durable else None,
        evaluated=sum("evaluate.examples" in metrics for metrics in fused.measured.values()),
        durable=done.durable,
    )


def _with_accuracies(metrics: Mapping[str, float]) -> Metrics:
    """Sums of correct answers become accuracies: "evaluate.correct" / "evaluate.examples"."""
    found: Metrics = {name: float(value) for name, value in metrics.items()}
    for name in [name for name in metrics if name.endswith(".correct")]:
        program = name.removesuffix(".correct")
        if examples := metrics.get(f"{program}.examples", 0.0):
            found[f"{program}.accuracy"] = metrics[name] / examples
    return found
