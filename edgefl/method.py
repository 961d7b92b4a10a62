"""The nouns of federated learning as edgefl sees it. Read this file first.

A *method* is the aggregator's half of a published algorithm: explicit state and three pure functions.
A *device* is an interpreter of *tasks*, which are plain data. One *round* is one *ask*, its *replies*,
one fusion:

    state = method.start()
    while (ask := method.ask(state)) is not None:
        replies = every asked device carries out ask.tasks
        state = method.advance(state, fuse(replies))

Where a method has a model of its own on the aggregator, what that has to do comes after each `advance`:

        while (work := method.work(state)) is not None:
            state = method.worked(state, the model carries out work.tasks)

A method sees no clock, no sampling of devices, no bytes, no MQTT. The coordinator does that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import msgspec

from edgefl.bundle import Bundle
from edgefl.tensors import Array, Tensors

Chosen = str | Mapping[str, Any]  # a name, or {"name": ...} with numbers of what is chosen beside it

Feed = Annotated[str, msgspec.Meta(pattern=r"^(train|test|announced|noise|kept:.*)\Z")]


class Keep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Examples that a device puts into a first-in-first-out buffer on its disk before a task's program runs.

    Kept are "x" (and "y", where there is one) as they were announced, or the noise that the task is fed. Doing an ask
    again changes nothing.

    buffer      its name, [a-z0-9_-]{1,36}
    capacity    the newest so many examples stay; older ones leave
    add         the announced "x" is the change of the newest entry instead, which must be of the round before: their
                sum in float32, with that entry's "y", is what is kept. A device that missed that round fails the task,
                until examples are announced as a whole again: so in every ask that is durable and in the one after it
    """

    buffer: str
    capacity: int
    add: bool = False


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One instruction to a device: run this program on that data, with these settings, then send those tensors.

    program     name in the bundle's manifest
    feed        where batches come from: the device's own "train" or "test" data, "announced" tensors "x" and
                "y", "kept:BUFFER", all of a buffer, oldest first, or "noise", `batch_size` standard normal examples of
                the task's seed (edgefl/random_numbers.py), the same on every device
    load        globs of announced tensors copied into the state first
    reset       globs of state tensors set back to the bundle's initial value first (optimizer moments)
    epochs      passes over the feed; `steps`, where not 0, is the number of batches instead
    batch_size  examples per batch; 0 is the whole feed in one batch. The last batch may be short
    seed        of the shuffle; None keeps the feed's order
    settings    scalar inputs of the program: learning_rate, temperature, max_steps ...
    send        globs of state tensors and outputs to return
    send_as     "value", or "delta" to what this device had when the task began
    encoding    of floats on the wire
    keep        what the feed "announced" or "noise" holds goes into a buffer first; with the feed "kept:BUFFER", what
                was announced goes into that buffer first
    """

    program: str
    feed: Feed = "train"
    load: tuple[str, ...] = ()
    reset: tuple[str, ...] = ()
    epochs: int = 1
    steps: int = 0
    batch_size: int = 32
    seed: int | None = None
    settings: dict[str, float] = {}
    send: tuple[str, ...] = ()
    send_as: Literal["value", "delta"] = "value"
    encoding: Literal["float32", "float16"] = "float32"
    keep: Keep | None = None


class Ask(msgspec.Struct, frozen=True):
    """What the aggregator announces for one round.

    tensors     announced to every asked device: name -> array
    fusion      how replies become one: a name in `edgefl.aggregator.fusion.FUSIONS`, or a fusion of one's own
    weight      how much a reply counts: a name in `edgefl.aggregator.weights.RULES`, a rule of one's own, or a function
                that the method brings
    durable     whether the round's outcome must be on disk before the next ask. Where not, a run that was interrupted
                goes back to the last durable round and does those after it again, to the same end. So the tasks may
                change nothing that devices keep for themselves (what they load does not count, nor what goes into
                buffers). The state before an ask that is durable is always on disk, and that at the end of the run
    certain     names of reply tensors whose rows are probabilities: 0 or more each, 1 together. Others are refused
    about       what a person should read of the round while it goes on: "epoch 3, dream 20 of 40"
    """

    tasks: tuple[Task, ...]
    tensors: Mapping[str, Array]
    fusion: Chosen = "mean"
    weight: Chosen | Callable[[Reply], float] = "examples"
    durable: bool = True
    certain: tuple[str, ...] = ()
    about: str = ""


class Reply(msgspec.Struct, frozen=True):
    """What one device sends back for one ask.

    examples    training examples of the device that the tasks saw (one epoch's worth)
    metrics     "PROGRAM.OUTPUT" -> number over the task's batches, e.g. "train.loss"; "PROGRAM.examples" says
                over how many
    steps       of the optimizer, in the tasks that were fed "train" and sent state; 0 without such a task
    """

    device: str
    round: int
    examples: int
    tensors: Mapping[str, Array]
    metrics: Mapping[str, float]
    steps: int = 0


class Fused(msgspec.Struct, frozen=True):
    """Many replies as one: tensors fused by the ask's fusion, metrics as means weighted by examples.

    weights     how much each device counted; they sum to 1
    measured    the metrics of each device
    steps       how many each device took
    """

    tensors: Mapping[str, Array]
    metrics: Mapping[str, float]
    devices: tuple[str, ...]
    examples: int
    weights: Mapping[str, float] = {}
    measured: Mapping[str, Mapping[str, float]] = {}
    steps: Mapping[str, int] = {}


class State(msgspec.Struct, frozen=True):
    """A method's whole memory between rounds: saved after every durable round, and loading it is resuming.

    round       rounds completed
    tensors     name -> array, never changed in place
    numbers     anything scalar a method wants to remember
    """

    round: int
    tensors: Mapping[str, Array]
    numbers: Mapping[str, float] = {}


class Model(NamedTuple):
    """A model that a method's state holds whole: `state` is what it has in place of the bundle's initial values."""

    name: str
    bundle: Bundle
    state: Tensors


class Sheet(NamedTuple):
    """Pictures for a person: uint8 images [n, C, H, W] or [n, H, W], a caption for each or none, how many in a row (0:
    about a square)."""

    images: Array
    captions: tuple[str, ...] = ()
    columns: int = 0


class Method(Protocol):
    """The aggregator's half of a published algorithm: three pure functions on `State`.

    A method may answer more questions; edgefl/runs/questions.py asks them, and says what is taken for an answer where
    a method has none.
    """

    def start(self) -> State:
        """The state before the first round."""
        ...

    def ask(self, state: State) -> Ask | None:
        """What devices should do next; None ends the run. Asking twice gives equal asks."""
        ...

    def advance(self, state: State, fused: Fused) -> State:
        """The state after a round. Leaves its arguments as they were."""
        ...


class Work(msgspec.Struct, frozen=True):
    """What a model on the aggregator is to do, as a device would that never leaves.

    tasks       in order; their feeds are "announced" and "noise", for it has no data of its own
    tensors     what is announced to it: name -> array
    state       its own state before the first task
    """

    tasks: tuple[Task, ...]
    tensors: Mapping[str, Array]
    state: Mapping[str, Array]


class Worked(msgspec.Struct, frozen=True):
    """What came of a `Work`.

    tensors     what its tasks send
    state       the model's own state after the last task
    """

    tensors: Mapping[str, Array]
    state: Mapping[str, Array]


@runtime_checkable
class WithModel(Method, Protocol):
    """A method with a model of its own on the aggregator: two more pure functions.

    Somebody else carries the work out, between `advance` and the next `ask`, so `advance` stays arithmetic. A state on
    disk is one whose work is done.
    """

    def work(self, state: State) -> Work | None:
        """What the model is to do now that the state is this one, which `advance` or `worked` gave; None for nothing.
        It follows from the state alone."""
        ...

    def worked(self, state: State, done: Worked) -> State:
        """The state after that work, of the same round. Leaves its arguments as they were."""
        ...
