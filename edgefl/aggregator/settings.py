"""`[round]` of a run file: how rounds are filled and closed, and what bounds a reply."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgefl.protocol import MAX_DEVICES


class RoundSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a round is filled and closed.

    fraction      C: share of the present devices asked in a round; at least one
    min_devices   a round waits until so many devices are present
    quorum        share of the devices asked first whose replies close a round at its deadline; at least one. Who has
                  missed two deadlines and never replied in the run is not counted, but no fewer than `min_devices` are
    deadline_s    seconds after which a round is closed, or asked again without quorum
    patience_s    seconds for which a round, or a run without enough devices to begin one, waits for its quorum; no less
                  than a deadline. 0: for ever
    below_quorum  what follows then: "wait" on; "close" the round with who is there; "stop" the run, to be resumed
    max_devices   of the run, over all its rounds; whoever comes after them is turned away
    max_share     a reply counts at most so many times the median weight of the round; 0: no limit. Of a fusion that
                  ignores weights every reply counts the same anyway
    max_norm      a reply is refused whose change has a norm of more than so many times the median; 0: none is
    """

    fraction: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_devices: Annotated[int, Meta(ge=1)] = 1
    quorum: Annotated[float, Meta(gt=0, le=1)] = 0.5
    deadline_s: Annotated[float, Meta(gt=0)] = 600.0
    patience_s: Annotated[float, Meta(ge=0)] = 0.0
    below_quorum: Literal["wait", "close", "stop"] = "wait"
    max_devices: Annotated[int, Meta(ge=1, le=MAX_DEVICES)] = 1000
    max_share: Annotated[float, Meta(ge=0)] = 3.0
    max_norm: Annotated[float, Meta(ge=0)] = 100.0
