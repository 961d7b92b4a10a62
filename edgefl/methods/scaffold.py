"""SCAFFOLD: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", ICML 2020, arXiv:1910.06378, Algorithm 1 with option II for the control variates.

    round: the server announces x and c
    device i: y = x;  K steps  y <- y - eta_l (g(y) - c_i + c)
              c_i+ = c_i - c + (x - y) / (K eta_l);  sends y - x and c_i+ - c_i;  c_i <- c_i+ stays on the device
    x <- x + eta_g mean(y - x);   c <- c + |S| / N mean(c_i+ - c_i),   S the devices that answered, N all devices

(x - y) / (K eta_l) is the mean of g(y) - c_i + c over the K steps, so c_i+ is the mean of g(y), and that is what the
program computes: the same number, for any learning rate, without the digits that a difference of weights loses. Means
are over devices, not examples, as in the paper: only then c stays the mean of all c_i.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta
from msgspec.structs import replace

from edgefl.errors import ConfigError
from edgefl.method import Fused, State, Task
from edgefl.methods.fedavg import FedAvg
from edgefl.names import CONTROL, CONTROL_CHANGE, CONTROL_STEPS, CONTROL_SUM


class Scaffold(FedAvg, frozen=True, kw_only=True):
    """FedAvg whose devices correct each gradient by how far theirs is from everybody's.

    For a bundle that was exported with --method scaffold: its shared tensors hold `control.NAME` for each parameter
    NAME that trains.

    devices                 N, all devices that may ever be asked: they are c's denominator
    server_learning_rate    eta_g
    """

    devices: Annotated[int, Meta(ge=1)]
    server_learning_rate: Annotated[float, Meta(gt=0)] = 1.0
    weight: Literal["equal"] = "equal"
    send_as: Literal["value", "delta"] = "delta"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share != ("*",):
            raise ValueError("share: scaffold corrects every parameter, so all of them travel")

    def start(self) -> State:
        state = super().start()
        if not self.controlled:
            raise ConfigError("the bundle has no control variates", hint="export it with --method scaffold")
        return state

    @property
    def sent(self) -> list[str]:
        return [name for name in self.shared if not name.startswith(CONTROL)]

    @property
    def controlled(self) -> list[str]:
        """The parameters that have a control variate."""
        return [name for name in self.sent if CONTROL + name in self.initial]

    def tasks(self, state: State) -> tuple[Task, ...]:
        *before, train = super().tasks(state)
        count = replace(train, reset=(*train.reset, CONTROL_SUM + "*", CONTROL_STEPS))
        changes = tuple(sorted(CONTROL_CHANGE + name for name in self.controlled))
        return (*before, count, Task(program="control", steps=1, batch_size=1, send=changes, encoding=self.encoding))

    def advance(self, state: State, fused: Fused) -> State:
        """Raises ConfigError when more devices answer than there are."""
        part = answered_part(fused, self.devices)
        after = super().advance(state, fused)
        tensors = dict(after.tensors)
        for name in self.controlled:
            x, c = state.tensors[name], state.tensors[CONTROL + name]
            tensors[name] = (x + self.server_learning_rate * self.change(state, fused, name)).astype(x.dtype)
            tensors[CONTROL + name] = (c + part * fused.tensors[CONTROL_CHANGE + name]).astype(c.dtype)
        return State(after.round, tensors, after.numbers)


def answered_part(fused: Fused, devices: int) -> float:
    """|S| / N, where so many `devices` may ever be asked. Raises ConfigError when more have answered."""
    if len(fused.devices) > devices:
        raise ConfigError(
            f"[method] devices is {devices}, but {len(fused.devices)} answered",
            hint="set it to how many devices may ever be asked",
        )
    return len(fused.devices) / devices
