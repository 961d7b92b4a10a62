"""FedAvg: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, Algorithm 1.

    w_0: one random init, shared by everybody
    round t: each asked device starts from w_t, runs E epochs of SGD with batch size B, returns w_k and n_k
    w_{t+1} = sum_k (n_k / m_t) w_k,   m_t = sum of n_k over the devices that answered

Other methods of this folder are FedAvg with one of its parts in another form: `tasks`, `train`, `advance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from edgefl.errors import ConfigError, nearest
from edgefl.manifest import select
from edgefl.method import Ask, Fused, State, Task
from edgefl.names import LEARNING_RATE, OPTIMIZER
from edgefl.tensors import Array


class FedAvg(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Federated averaging of the shared tensors, or of some of them.

    initial         shared tensors of the bundle: name -> array
    share           globs: which of them are announced, loaded, sent and averaged. The others stay with each device,
                    from round to round, as its local state does
    rounds          how many rounds; the run ends after the last
    epochs          E, passes over a device's own data
    batch_size      B; 0 is all of a device's data in one batch (FedSGD, with epochs = 1)
    learning_rate   of the devices' optimizer, multiplied by `decay` after each round; None: what the bundle was
                    exported with
    settings        other settings of the train program: clip_norm, micro_batches ...
    reset           state set back before each round: momentum does not survive it by default
    send_as         "delta" sends what changed; what is fused is the same up to rounding
    encoding        of floats on the wire
    evaluate        also evaluate on each device's own test data, before it trains: the announced tensors, with what
                    the device has kept in place of the others
    weight          weight rule (edgefl/aggregator/weights.py): a name, or { name = ..., number = ... }
    fusion          how replies become one (edgefl/aggregator/fusion.py), in the same way
    seed            of the devices' shuffles
    """

    initial: Mapping[str, Any]
    share: tuple[str, ...] = ("*",)
    rounds: Annotated[int, Meta(ge=1)] = 10
    epochs: Annotated[int, Meta(ge=1)] = 1
    batch_size: Annotated[int, Meta(ge=0)] = 32
    learning_rate: Annotated[float, Meta(gt=0)] | None = None
    decay: Annotated[float, Meta(gt=0, le=1)] = 1.0
    settings: dict[str, float] = {}
    reset: tuple[str, ...] = (f"{OPTIMIZER}*",)
    send_as: Literal["value", "delta"] = "value"
    encoding: Literal["float32", "float16"] = "float32"
    evaluate: bool = False
    weight: str | dict[str, Any] = "examples"
    fusion: str | dict[str, Any] = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.learning_rate is None and self.decay != 1:
            raise ValueError("decay needs a learning_rate")

    def start(self) -> State:
        """Raises ConfigError for a `share` that matches nothing."""
        for pattern in self.share:
            if not select(self.initial, [pattern]):
                raise ConfigError(
                    f"[method] share: {pattern!r} matches no shared tensor of the bundle",
                    hint=nearest(pattern, self.initial, cutoff=0.3, most=8),
                )
        return State(round=0, tensors={name: self.initial[name] for name in self.shared})

    @property
    def shared(self) -> list[str]:
        """The names of the tensors that travel."""
        return select(self.initial, self.share)

    @property
    def sent(self) -> list[str]:
        """Those that devices train and send back."""
        return self.shared

    def ask(self, state: State) -> Ask | None:
        if state.round >= self.rounds:
            return None
        announced = {name: state.tensors[name] for name in self.shared}
        return Ask(self.tasks(state), announced, fusion=self.fusion, weight=self.weight)

    def tasks(self, state: State) -> tuple[Task, ...]:
        """What the devices do in a round."""
        evaluate = Task(program="evaluate", feed="test", load=("*",), batch_size=256)
        return (*((evaluate,) if self.evaluate else ()), self.train(state))

    def train(self, state: State) -> Task:
        """The task that trains, and sends what is averaged."""
        settings = dict(self.settings)
        if self.learning_rate is not None:
            settings[LEARNING_RATE] = self.learning_rate * self.decay**state.round
        return Task(
            program="train",
            load=("*",),
            reset=self.reset,
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed + state.round,
            settings=settings,
            send=tuple(sorted(self.sent)),
            send_as=self.send_as,
            encoding=self.encoding,
        )

    def advance(self, state: State, fused: Fused) -> State:
        tensors = dict(state.tensors)
        for name in self.sent:
            if name not in fused.tensors:  # of an architecture that no device of this round has
                continue
            value = state.tensors[name]
            new = fused.tensors[name] if self.send_as == "value" else value + fused.tensors[name]
            tensors[name] = new.astype(value.dtype)
        return State(round=state.round + 1, tensors=tensors, numbers=state.numbers)

    def change(self, state: State, fused: Fused, name: str) -> Array:
        """By how much the mean of the devices differs from what they were given; 0 where none of them has it."""
        if name not in fused.tensors:
            return np.zeros_like(state.tensors[name])
        got = fused.tensors[name]
        return got if self.send_as == "delta" else got - state.tensors[name]
