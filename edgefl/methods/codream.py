"""CoDream: Singh, Gupta, Kapila, Shi, Dagar, Vepakomma, Raskar, "CoDream: Exchanging Dreams Instead of Models for
Federated Aggregation with Heterogeneous Models", arXiv:2402.15968.

Devices of any architecture optimise inputs together, label them together, and learn from them. No weight is ever sent.

    warm up: each device trains its own model f_k
    an epoch, G + 2 rounds:
      dream  X ~ N(0, 1);  G times: the server announces X, device k answers g_k = dL_k/dX with its model frozen,
             X <- Adam(X, mean_k g_k - lambda d/dX mean H(softmax s(X))),  s the server's student, H the entropy
      label  device k answers softmax f_k(X);  y = mean_k of them
      learn  (X, y) goes into everybody's first-in-first-out buffer; devices and student distill on the buffer with
             T^2 KL(y_T | softmax(f / T)), then devices train on their own data

L_k is in the bundle's program `dream`. Probabilities are averaged, as in the paper's equation; its code averages
logits, which the most confident device decides. With local steps a device goes several Adam steps by itself and answers
X - X_k, whose mean is subtracted from X: federated averaging in the space of the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import msgspec
import numpy as np
from msgspec import Meta

from edgefl.bundle import Bundle
from edgefl.data_contract import DataContract
from edgefl.errors import ConfigError
from edgefl.manifest import Manifest
from edgefl.method import Ask, Chosen, Fused, Keep, Model, Sheet, State, Task, Work, Worked
from edgefl.names import (
    DREAM_CHANGE,
    DREAM_GRADIENT,
    DREAMS,
    ENTROPY,
    FEATURES,
    GRADIENT_SCALE,
    L2,
    LABELS,
    LEARNING_RATE,
    LIKENESS_MOST,
    NEAREST,
    OBSERVED_EXAMPLES,
    OPTIMIZER,
    PROBABILITIES,
    STATISTICS,
    STEP_SIZE,
    STEPS,
    TEMPERATURE,
    TOTAL_VARIATION,
)
from edgefl.random_numbers import normals
from edgefl.tensors import Array, Tensors

METHOD = "codream"  # of bundles that can dream
X, Y = FEATURES, LABELS  # what devices call the dreams and their labels
BUFFER, CURRENT = "dreams", "current"  # buffers of a device
LIKENESS = f"likeness.{LIKENESS_MOST}"  # metric: the greatest cosine of a dream to an own image
STUDENT = "student."  # what its tensors in the state begin with
UNSURE = {ENTROPY: 1.0, STATISTICS: 0.0, TOTAL_VARIATION: 0.0, L2: 0.0}  # settings: entropy alone
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # Adam's
UNSURE_OF = "unsure."  # what the student's gradients in the state begin with
FORGOTTEN = ("dreams", "labels", "change", "path", "adam.", UNSURE_OF)  # of an epoch: the next one does without
PATH = 12  # pictures of one dream that are kept of an epoch, at most


class Student(Protocol):
    """The model that learns on the aggregator, a device that never leaves: what the method knows of it."""

    @property
    def bundle(self) -> Bundle: ...

    @property
    def data(self) -> DataContract: ...

    @property
    def initial(self) -> Tensors:
        """Its state before the first task."""
        ...


class Place(NamedTuple):
    """Where in the run a round is. Epochs count from 1, the warm-up is 0; steps of a dream count from 0."""

    epoch: int
    phase: Literal["warm up", "dream", "label", "learn"]
    step: int = 0


class CoDream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Dreams instead of models.

    For bundles that were exported with --method codream, of any architecture with one data contract.

    initial              shared tensors of the bundles: only `dreams`, which `likeness` compares
    student              the model on the aggregator; None only to check a run file
    epochs               how often devices dream, label and learn
    warm_up              passes over its own data that each device trains before the first dream
    dreams               B, how many dreams an epoch makes
    dream_steps          G, steps of an epoch's dreams; a multiple of `local_steps`
    dream_rate           of the Adam that moves dreams, in units of the normalised input
    entropy, statistics, total_variation, l2    weights of the terms of L_k
    adversarial          lambda: dreams that the student is unsure of are preferred
    adversarial_from     the first epoch in which they are
    clip                 the greatest norm of one dream's gradient, after the mean over devices; 0: any
    buffer               how many dreams devices and student keep
    temperature          T
    distill_epochs, distill_batch_size, distill_rate     passes over the buffer in each epoch, and how
    train_epochs, batch_size, learning_rate              passes over a device's own data, and how; a rate of None is
                         what the bundle was exported with
    alone                leave everything out but the devices' own training: what dreams are compared with
    evaluate             devices evaluate their models on their own test data, at the end of each epoch
    likeness_limit       warn when a dream is more like an image of a device than this cosine
    weight               weight rule of the probabilities; gradients count the same from every device
    fusion               of the gradients, or of the changes of local steps; probabilities are always averaged
    encoding             of gradients, changes and probabilities on the wire
    dreams_as            how dreams go out: "float32"; "uint8", as pixels; or "change": devices keep the dreams and get
                         by how much they changed, as float16, with the dreams themselves around each durable step
    local_steps          Adam steps of a device per exchange; 1 sends gradients
    seeded               send a seed in place of an epoch's first dreams
    refresh              steps between two states on disk: after a crash the dreams go back as far at most
    gradient_scale       gradients are sent so many times as large, so that float16 holds the small ones
    seed                 of the dreams and of the devices' shuffles
    """

    initial: Mapping[str, Any]
    student: Any = None
    epochs: Annotated[int, Meta(ge=1)] = 10
    warm_up: Annotated[int, Meta(ge=0)] = 20
    dreams: Annotated[int, Meta(ge=2)] = 64
    dream_steps: Annotated[int, Meta(ge=1)] = 150
    dream_rate: Annotated[float, Meta(gt=0)] = 0.05
    entropy: Annotated[float, Meta(ge=0)] = 1.0
    statistics: Annotated[float, Meta(ge=0)] = 10.0
    total_variation: Annotated[float, Meta(ge=0)] = 2.5e-5
    l2: Annotated[float, Meta(ge=0)] = 3e-8
    adversarial: Annotated[float, Meta(ge=0)] = 1.0
    adversarial_from: Annotated[int, Meta(ge=1)] = 3
    clip: Annotated[float, Meta(ge=0)] = 0.0
    buffer: Annotated[int, Meta(ge=1)] = 640
    temperature: Annotated[float, Meta(gt=0)] = 2.0
    distill_epochs: Annotated[int, Meta(ge=1)] = 10
    distill_batch_size: Annotated[int, Meta(ge=1)] = 32
    distill_rate: Annotated[float, Meta(gt=0)] | None = None
    train_epochs: Annotated[int, Meta(ge=1)] = 5
    batch_size: Annotated[int, Meta(ge=1)] = 32
    learning_rate: Annotated[float, Meta(gt=0)] | None = None
    alone: bool = False
    evaluate: bool = False
    likeness_limit: Annotated[float, Meta(gt=0, le=1)] = 0.95
    weight: str | dict[str, Any] = "examples"
    fusion: str | dict[str, Any] = "mean"
    encoding: Literal["float32", "float16"] = "float16"
    dreams_as: Literal["float32", "uint8", "change"] = "uint8"
    local_steps: Annotated[int, Meta(ge=1)] = 1
    seeded: bool = True
    refresh: Annotated[int, Meta(ge=1)] = 25
    gradient_scale: Annotated[float, Meta(gt=0)] = 1024.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dream_steps % self.local_steps:
            raise ValueError("dream_steps must be a multiple of local_steps")

    # --- the method -------------------------------------------------------------------------------------------

    def start(self) -> State:
        """Raises ConfigError without a student, for examples that are no images, or when there are more dreams than
        the bundles compare."""
        if self.student is None:
            raise ConfigError("codream needs a student, the model that learns on the aggregator", hint="add [student]")
        if len(self._shape) not in (2, 3):
            raise ConfigError(
                f"codream dreams images, and an example of the student has shape {list(self._shape)}",
                hint="export with --input CHANNELSxHEIGHTxWIDTH; the model may flatten them",
            )
        if DREAMS not in self.initial:
            raise ConfigError("the bundles cannot dream", hint="export them with --method codream")
        if (most := len(self.initial[DREAMS])) < self.dreams:
            raise ConfigError(
                f"[method] dreams is {self.dreams}, but the bundles compare {most} with a device's own images",
                hint=f"export them with --dreams {self.dreams}",
            )
        return State(0, {STUDENT + name: value for name, value in self.student.initial.items()})

    def ask(self, state: State) -> Ask | None:
        if state.round >= self.rounds:
            return None
        place = self.place(state.round)
        if place.phase == "dream":
            return self._ask_to_dream(state, place)
        if place.phase == "label":
            label = Task(program="label", feed="announced", batch_size=0, send=(PROBABILITIES,), encoding=self.encoding)
            count = Task(program="predict", batch_size=256)  # of its own data: weight rules then know how many it has
            announced = {X: self.pixels(state.tensors["dreams"])}
            return self._ask((label, count), announced, place, weight=self.weight, certain=(PROBABILITIES,))
        if place.phase == "warm up" or self.alone:
            return self._ask(self._train(place), {}, place)
        pixels = self.pixels(state.tensors["dreams"])
        announced = {X: pixels, Y: state.tensors["labels"], DREAMS: self._compared(pixels)}
        keep = Keep(BUFFER, self.buffer)
        return self._ask((self._distill(f"kept:{BUFFER}", place.epoch, keep), *self._train(place)), announced, place)

    def advance(self, state: State, fused: Fused) -> State:
        place = self.place(state.round)
        if place.phase == "dream":
            return State(state.round + 1, self._dreamed(state, fused, place), state.numbers)
        if place.phase == "label":
            y = fused.tensors[PROBABILITIES]
            labels = (y / y.sum(1, keepdims=True)).astype(np.float32)
            return State(state.round + 1, {**state.tensors, "labels": labels}, state.numbers)
        after = State(state.round + 1, state.tensors, state.numbers)
        if self.alone:
            return after
        if place.phase == "warm up":
            return self._fall_asleep(after)
        return State(after.round, self._remembered(after.tensors), state.numbers)

    def work(self, state: State) -> Work | None:
        """What the student does: after an epoch it learns from the dreams, and before a step of them it says what it
        is unsure of."""
        place = self.place(state.round)
        if self.alone:
            return None
        if _has_to_learn(state, place):
            buffer = {X: state.tensors["buffer.x"], Y: state.tensors["buffer.y"]}
            return self._for_student(state, self._distill("announced", place.epoch - 1), buffer)
        return self._work_of_dreams(state, place)

    def worked(self, state: State, done: Worked) -> State:
        place = self.place(state.round)
        if not _has_to_learn(state, place):
            return State(state.round, {**state.tensors, **self._added(state, done, place)}, state.numbers)
        learned = {STUDENT + name: value for name, value in done.state.items()}
        return self._fall_asleep(State(state.round, {**state.tensors, **learned}, state.numbers))

    # --- what a run asks (edgefl/runs/questions.py) -----------------------------------------------------------

    length: ClassVar[str] = "epochs"

    def check(self, manifests: Sequence[Manifest], fraction: float) -> None:
        """Raises ConfigError unless student and devices look at the same kind of examples, the student can do what
        devices do, and all devices are asked."""
        student = self.student.bundle.manifest
        if student.method != METHOD:
            raise ConfigError("the student cannot dream", hint=f'add options = {{ method = "{METHOD}" }} to [student]')
        if missing := sorted(self.initial.keys() - student.fusion_map().keys()):
            raise ConfigError(
                f"the student has no tensor {missing[0]!r}, which the bundles share",
                hint="export it with the options of [[bundle]]",
            )
        for manifest in manifests:
            for what in ("shape", "dtype", "range", "normalisation", "classes"):
                mine, its = (data if what == "classes" else data.feature for data in (manifest.data, student.data))
                got, want = getattr(mine, what), getattr(its, what)
                if got != want:
                    raise ConfigError(
                        f"bundle {manifest.name!r} has {what} {got}; the student has {want}",
                        hint="devices and student dream together: export all for the same examples",
                    )
        if fraction < 1:
            raise ConfigError(
                f"[round] fraction is {fraction:g}: a device that was not asked to warm up would dream untrained",
                hint=f"{METHOD} asks all devices: fraction = 1",
            )

    def rehearse(self) -> tuple[Ask, ...]:
        """One ask of each kind that a run will make, with tensors of the right shapes, to check before it begins."""
        state = self.start()
        images = np.zeros((self.dreams, *self._shape), np.float32)
        classes = self.student.data.classes or 1
        labels = np.full((self.dreams, classes), 1 / classes, np.float32)
        given = {"dreams": images, "labels": labels, "change": images.astype(np.float16)}
        tensors = {**state.tensors, **self._begin_to_dream(state.tensors, 1), **given}
        last = self.exchanges  # of the first epoch's dream rounds; before it the warm-up, after it label and learn
        rounds = {0, 1} if self.alone else {0, 1, last, last + 1, last + 2}
        asks = [self.ask(State(round, tensors)) for round in sorted(rounds)]
        return tuple(ask for ask in asks if ask is not None)

    def models(self, tensors: Tensors) -> list[Model]:
        """The student; none where it learns nothing."""
        return [] if self.alone else [Model("student", self.student.bundle, self.student_in(tensors))]

    def pictures(self, state: State) -> dict[str, Sheet]:
        """What an epoch dreamed, when it is labelled: each with the class that its label gives most; and the first of
        them, from noise to the end."""
        if state.round == 0 or self.alone or (place := self.place(state.round - 1)).phase != "label":
            return {}
        labels, path = state.tensors["labels"], state.tensors["path"]
        captions = tuple(f"{c}: {p:.0%}" for c, p in zip(labels.argmax(1), labels.max(1), strict=True))
        name = f"epoch-{place.epoch:03}"
        return {
            name: Sheet(self.pixels(state.tensors["dreams"]), captions),
            f"{name}-path": Sheet(path, columns=len(path)),
        }

    def warning(self, measured: Mapping[str, Mapping[str, float | None]]) -> str | None:
        """A dream that is too much like an image of a device."""
        found = {d: value for d, metrics in measured.items() if (value := metrics.get(LIKENESS)) is not None}
        if not found or max(found.values()) <= self.likeness_limit:
            return None
        device = max(found, key=lambda name: found[name])
        return (
            f"a dream is like an image of {device}: cosine {found[device]:.3f}, over {self.likeness_limit:g} "
            "(likeness_limit); more total_variation, less statistics or fewer dream_steps make dreams vaguer"
        )

    # --- where a run is ---------------------------------------------------------------------------------------

    @property
    def rounds(self) -> int:
        """Of the whole run."""
        return 1 + self.epochs * (1 if self.alone else self.exchanges + 2)

    @property
    def exchanges(self) -> int:
        """Dream rounds of an epoch."""
        return self.dream_steps // self.local_steps

    def place(self, round: int) -> Place:
        """What round `round`, from 0, is."""
        if round == 0:
            return Place(0, "warm up")
        if self.alone:
            return Place(round, "learn")
        epoch, step = divmod(round - 1, self.exchanges + 2)
        if step < self.exchanges:
            return Place(epoch + 1, "dream", step)
        return Place(epoch + 1, "label" if step == self.exchanges else "learn")

    # --- dreams -----------------------------------------------------------------------------------------------

    @property
    def factors(self) -> dict[str, float]:
        """The weights of the terms of L_k, as settings of a program."""
        return {
            ENTROPY: self.entropy,
            STATISTICS: self.statistics,
            TOTAL_VARIATION: self.total_variation,
            L2: self.l2,
        }

    def pixels(self, x: Array) -> Array:
        """Dreams [B, C, H, W] in the input space as uint8, as a camera would have seen them."""
        mean, std = self._normalisation(x)
        pixels: Array = np.clip(np.rint((x * std + mean) * 255), 0, 255).astype(np.uint8)
        return pixels

    def _normalisation(self, x: Array) -> tuple[Array, Array]:
        channels = (-1, *[1] * (x.ndim - 2))
        normalisation = self.student.data.feature.normalisation
        mean, std = (np.asarray(v, np.float32).reshape(channels) for v in (normalisation.mean, normalisation.std))
        return mean, std

    def _within(self, x: Array) -> Array:
        """Dreams no brighter and no darker than an image can be."""
        mean, std = self._normalisation(x)
        within: Array = np.clip(x, (0 - mean) / std, (1 - mean) / std).astype(np.float32)
        return within

    @property
    def _shape(self) -> tuple[int, ...]:
        """Of one dream."""
        shape: tuple[int, ...] = self.student.data.feature.shape
        return shape

    def _first(self, epoch: int) -> Array:
        return normals(self._noise_seed(epoch), (self.dreams, *self._shape))

    def _noise_seed(self, epoch: int) -> int:
        return self.seed * 10_000 + epoch

    def _fall_asleep(self, state: State) -> State:
        """The next round begins to dream: new dreams, without moments. Also after the last epoch: a resume may have
        more."""
        kept = {name: value for name, value in state.tensors.items() if not name.startswith(FORGOTTEN)}
        epoch = self.place(state.round).epoch
        return State(state.round, {**kept, **self._begin_to_dream(kept, epoch)}, state.numbers)

    def _begin_to_dream(self, tensors: Tensors, epoch: int) -> dict[str, Array]:
        """The tensors of an epoch's dreams before their first step."""
        first = self._first(epoch)
        return {
            "dreams": first,
            "adam.m": np.zeros_like(first),
            "adam.v": np.zeros_like(first),
            "path": self.pixels(first[:1]),
        }

    def _ask_to_dream(self, state: State, place: Place) -> Ask:
        x = state.tensors["dreams"]
        durable = place.step % self.refresh == 0
        whole = place.step % self.refresh <= 1  # a resume begins with a durable round, after one or before one
        keep: Keep | None = Keep(CURRENT, self.dreams) if self.dreams_as == "change" else None
        feed, announced = "announced", {X: self.pixels(x) if self.dreams_as == "uint8" else x}
        if place.step == 0 and self.seeded:
            feed, announced = "noise", {}
        elif keep is not None and not whole:
            feed, keep = f"kept:{CURRENT}", Keep(CURRENT, self.dreams, add=True)
            announced = {X: state.tensors["change"]}
        settings = self.factors
        if self.local_steps > 1:
            settings |= {STEPS: float(self.local_steps), STEP_SIZE: self.dream_rate}
        else:
            settings[GRADIENT_SCALE] = self.gradient_scale
        task = Task(
            program="dream" if self.local_steps == 1 else "dream_steps",
            feed=feed,
            keep=keep,
            batch_size=self.dreams if feed == "noise" else 0,
            seed=self._noise_seed(place.epoch) if feed == "noise" else None,
            settings=settings,
            send=(DREAM_GRADIENT if self.local_steps == 1 else DREAM_CHANGE,),
            encoding=self.encoding,
        )
        return self._ask((task,), announced, place, durable=durable, fusion=self.fusion)

    def _dreamed(self, state: State, fused: Fused, place: Place) -> dict[str, Array]:
        """The state's tensors after a step of the dreams."""
        tensors, unsure = without_unsure(state.tensors)
        x = tensors["dreams"]
        gradient = np.zeros_like(x)
        if self.local_steps == 1:
            gradient = fused.tensors[DREAM_GRADIENT] / np.float32(self.gradient_scale)
        if self._is_adversarial(place):
            gradient = gradient - np.float32(self.adversarial) * unsure[DREAM_GRADIENT]
        m, v = tensors["adam.m"], tensors["adam.v"]
        step, tensors["adam.m"], tensors["adam.v"] = adam(
            self._clipped(gradient), m, v, place.step + 1, self.dream_rate
        )
        if self.local_steps > 1:
            step = step + fused.tensors[DREAM_CHANGE]
        moved = self._within(x - step)
        if self.dreams_as == "change":  # exactly what devices will have: they add what float16 holds of it
            tensors["change"] = (moved - x).astype(np.float16)
            moved = x + tensors["change"].astype(np.float32)
        tensors["dreams"] = moved
        if self._is_pictured(place.step):
            tensors["path"] = np.concatenate([tensors["path"], self.pixels(moved[:1])])
        return tensors

    def _is_pictured(self, step: int) -> bool:
        """Whether the first dream is kept after this step, in `path`, [n, C, H, W]."""
        every = -(-self.exchanges // (PATH - 2))
        return step % every == every - 1 or step == self.exchanges - 1

    def _clipped(self, gradient: Array) -> Array:
        """[B, ...] with no dream's gradient longer than `clip`."""
        if not self.clip:
            return gradient
        norms = np.sqrt(np.square(gradient).sum(axis=tuple(range(1, gradient.ndim)), keepdims=True))
        shorter: Array = gradient * np.minimum(1, self.clip / np.maximum(norms, np.float32(1e-12))).astype(np.float32)
        return shorter

    def _is_adversarial(self, place: Place) -> bool:
        return bool(self.adversarial) and place.epoch >= self.adversarial_from

    def _work_of_dreams(self, state: State, place: Place) -> Work | None:
        """d/dX mean H(softmax s(X)), before each step."""
        if place.phase != "dream" or not self._is_adversarial(place) or UNSURE_OF + DREAM_GRADIENT in state.tensors:
            return None
        task = Task(program="dream", feed="announced", batch_size=0, settings=UNSURE, send=(DREAM_GRADIENT,))
        return self._for_student(state, task, {X: state.tensors["dreams"]})

    def _added(self, state: State, done: Worked, place: Place) -> Tensors:
        """What the student's work on dreams adds to the state's tensors."""
        return {UNSURE_OF + name: value for name, value in done.tensors.items()}

    def _for_student(self, state: State, task: Task, announced: Tensors) -> Work:
        return Work((task,), announced, self.student_in(state.tensors))

    # --- learning ---------------------------------------------------------------------------------------------

    def _ask(
        self,
        tasks: tuple[Task, ...],
        announced: Tensors,
        place: Place,
        *,
        durable: bool = True,
        weight: Chosen = "equal",
        fusion: Chosen = "mean",
        certain: tuple[str, ...] = (),
    ) -> Ask:
        about = f"epoch {place.epoch}, {place.phase}" if place.epoch else place.phase
        if place.phase == "dream":
            about = f"{about} {place.step + 1} of {self.exchanges}"
        return Ask(tasks, announced, fusion, weight, durable, certain, about)

    def _distill(self, feed: str, epoch: int, keep: Keep | None = None) -> Task:
        rate = {} if self.distill_rate is None else {LEARNING_RATE: self.distill_rate}
        return Task(
            program="distill",
            feed=feed,
            keep=keep,
            reset=(f"{OPTIMIZER}*",),
            epochs=self.distill_epochs,
            batch_size=self.distill_batch_size,
            seed=self.seed + epoch,
            settings={TEMPERATURE: self.temperature, **rate},
        )

    def _train(self, place: Place) -> tuple[Task, ...]:
        """A device's own data: it trains, and measures what its next dreams need."""
        train = Task(
            program="train",
            reset=(f"{OPTIMIZER}*",),
            epochs=self.train_epochs if place.epoch else self.warm_up,
            batch_size=self.batch_size,
            seed=self.seed + place.epoch,
            settings={} if self.learning_rate is None else {LEARNING_RATE: self.learning_rate},
        )
        tasks: tuple[Task, ...] = (train,) if train.epochs else ()
        # A glob, because bundles with BatchNorm have no such counter. Without it old models' features would count.
        tasks += (Task(program="statistics", reset=(f"{OBSERVED_EXAMPLES}*",), batch_size=256),)
        if place.epoch and not self.alone:
            tasks += (Task(program="likeness", load=(DREAMS,), reset=(NEAREST,), batch_size=256),)
        evaluate = Task(program="evaluate", feed="test", batch_size=256)
        return (*tasks, evaluate) if self.evaluate else tasks

    def _compared(self, pixels: Array) -> Array:
        """As many dreams as the bundles compare: all of them, and some again."""
        return np.resize(pixels, self.initial[DREAMS].shape)

    def _remembered(self, tensors: Tensors) -> dict[str, Array]:
        """With the dreams and their labels in the student's buffer, as devices have them in theirs."""
        new = {X: self.pixels(tensors["dreams"]), Y: tensors["labels"]}
        buffer = {}
        for name, value in new.items():
            before = tensors.get(f"buffer.{name}", value[:0])
            buffer[f"buffer.{name}"] = np.concatenate([before, value])[-self.buffer :]
        return {**tensors, **buffer}

    def student_in(self, tensors: Tensors) -> dict[str, Array]:
        """The student's own state, of the method's tensors."""
        return {k.removeprefix(STUDENT): v for k, v in tensors.items() if k.startswith(STUDENT)}


def _has_to_learn(state: State, place: Place) -> bool:
    """Whether the student has not learned yet from the dreams that devices have learned from."""
    return place.phase == "dream" and "labels" in state.tensors


def without_unsure(tensors: Tensors) -> tuple[dict[str, Array], dict[str, Array]]:
    """A state's tensors without the gradients of what the student is unsure of, and these, by the names of devices."""
    unsure = {k.removeprefix(UNSURE_OF): v for k, v in tensors.items() if k.startswith(UNSURE_OF)}
    return {k: v for k, v in tensors.items() if not k.startswith(UNSURE_OF)}, unsure


def adam(gradient: Array, m: Array, v: Array, t: int, rate: float) -> tuple[Array, Array, Array]:
    """What to subtract, and the moments after it (Kingma, Ba 2015, Algorithm 1); float32. `t` counts from 1."""
    m = np.float32(BETA_1) * m + np.float32(1 - BETA_1) * gradient
    v = np.float32(BETA_2) * v + np.float32(1 - BETA_2) * np.square(gradient)
    step = np.float32(rate) * (m / np.float32(1 - BETA_1**t))
    return step / (np.sqrt(v / np.float32(1 - BETA_2**t)) + np.float32(EPSILON)), m, v
