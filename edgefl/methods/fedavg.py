"""FedAvg: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, Algorithm 1.

    w_0: one random init, shared by everybody
    round t: each asked device starts from w_t, runs E epochs of SGD with batch size B, returns w_k and n_k
    w_{t+1} = sum_k (n_k / m_t) w_k,   m_t = sum of n_k over the devices that answered
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edgefl.method import Ask, Fused, State, Task


class FedAvg(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Federated averaging of every shared tensor.

    initial         shared tensors of the bundle: name -> array
    rounds          how many rounds; the run ends after the last
    epochs          E, passes over a device's own data
    batch_size      B; 0 is all of a device's data in one batch (FedSGD, with epochs = 1)
    learning_rate   of the devices' optimizer, multiplied by `decay` after each round; None: what the bundle was
                    exported with
    proximal        mu of FedProx (Li et al. 2020, arXiv:1812.06127): each device is pulled to the weights that the
                    round began with; for a bundle that was exported with --proximal
    settings        other settings of the train program: clip_norm, micro_batches ...
    reset           state set back before each round: momentum does not survive it by default
    send_as         "delta" sends what changed; what is fused is the same up to rounding
    encoding        of floats on the wire
    evaluate        also evaluate the announced model on each device's own test data
    weight          weight rule (edgefl.fusion.WEIGHTS)
    fusion          how replies become one (edgefl.fusion.FUSIONS)
    seed            of the devices' shuffles
    """

    initial: Mapping[str, Any]
    rounds: Annotated[int, Meta(ge=1)] = 10
    epochs: Annotated[int, Meta(ge=1)] = 1
    batch_size: Annotated[int, Meta(ge=0)] = 32
    learning_rate: Annotated[float, Meta(gt=0)] | None = None
    decay: Annotated[float, Meta(gt=0, le=1)] = 1.0
    proximal: Annotated[float, Meta(ge=0)] | None = None
    settings: dict[str, float] = {}
    reset: tuple[str, ...] = ("optimizer.*",)
    send_as: Literal["value", "delta"] = "value"
    encoding: Literal["float32", "float16"] = "float32"
    evaluate: bool = False
    weight: str = "examples"
    fusion: str = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.learning_rate is None and self.decay != 1:
            raise ValueError("decay needs a learning_rate")

    def start(self) -> State:
        return State(round=0, tensors=dict(self.initial))

    def ask(self, state: State) -> Ask | None:
        if state.round >= self.rounds:
            return None
        settings = dict(self.settings)
        if self.learning_rate is not None:
            settings["learning_rate"] = self.learning_rate * self.decay**state.round
        if self.proximal is not None:
            settings["proximal"] = self.proximal
        train = Task(
            program="train",
            load=("*",),
            reset=self.reset,
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed + state.round,
            settings=settings,
            send=tuple(sorted(self.initial)),
            send_as=self.send_as,
            encoding=self.encoding,
        )
        evaluate = Task(program="evaluate", feed="test", load=("*",), batch_size=256)
        anchor = Task(program="anchor", load=("*",), steps=1, batch_size=1)
        tasks = (
            *((evaluate,) if self.evaluate else ()),
            *((anchor,) if self.proximal is not None else ()),
            train,
        )
        return Ask(tasks, state.tensors, fusion=self.fusion, weight=self.weight)

    def advance(self, state: State, fused: Fused) -> State:
        tensors = {}
        for name, value in state.tensors.items():
            new = fused.tensors[name] if self.send_as == "value" else value + fused.tensors[name]
            tensors[name] = new.astype(value.dtype)
        return State(round=state.round + 1, tensors=tensors, numbers=state.numbers)
