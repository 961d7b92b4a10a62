"""CoDream fast: Singh, Gupta, Kapila, Shi, Dagar, Vepakomma, Raskar, "CoDream: Exchanging Dreams Instead of Models for
Federated Aggregation with Heterogeneous Models", arXiv:2402.15968, section "fast CoDream"; after Fang et al., AAAI
2022, arXiv:2112.06253.

A generator G makes the dreams, so a few federated steps of G and its input z take the place of many of the dreams.

    dream  G = the meta-generator, z ~ N(0, 1);  a few times: the server announces G and z, device k answers the
           gradients of L_k(G(z)) by both, Adam moves both along their mean
           X = G(z);  meta-generator <- meta-generator + meta_rate (G - meta-generator)   (Reptile, Nichol et al. 2018)
    label and learn as in CoDream

Models stay where they are here too: the adversarial term is the student's, on the aggregator. The paper's code sends
the student to the devices.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta

from edgefl.errors import ConfigError
from edgefl.method import Ask, Fused, State, Task, Work, Worked
from edgefl.methods.codream import UNSURE, UNSURE_OF, CoDream, Place, X, adam, without_unsure
from edgefl.names import GENERATOR, GRADIENT, GRADIENT_SCALE, GRADIENT_Z
from edgefl.random_numbers import normals
from edgefl.tensors import Array, Tensors

ADAPTED = "adapted."  # what begins the names of what an epoch makes of the meta-generator
GRADIENTS = GRADIENT + GENERATOR


class CoDreamFast(CoDream, frozen=True):
    """For bundles that were exported with --method codream --generator, of any architecture.

    dream_steps       steps of G and z in an epoch
    dream_rate        of z's Adam
    generator_rate    of G's Adam
    meta_rate         how far the meta-generator follows an epoch's G
    """

    dream_steps: Annotated[int, Meta(ge=1)] = 10
    dream_rate: Annotated[float, Meta(gt=0)] = 0.02
    generator_rate: Annotated[float, Meta(gt=0)] = 5e-3
    meta_rate: Annotated[float, Meta(gt=0, le=1)] = 0.5
    gradient_scale: Annotated[float, Meta(gt=0)] = 1.0  # a generator's gradients are not small

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local_steps > 1:
            raise ValueError("local_steps: a generator takes no steps on devices")

    def start(self) -> State:
        """Raises ConfigError, as CoDream, and for bundles without a generator."""
        state = super().start()
        meta = {name: value for name, value in self.initial.items() if name.startswith(GENERATOR)}
        if not meta:
            raise ConfigError("the bundles have no generator", hint="export them with --method codream --generator")
        return State(state.round, {**state.tensors, **meta})

    def _begin_to_dream(self, tensors: Tensors, epoch: int) -> dict[str, Array]:
        adapted = {ADAPTED + name: value for name, value in tensors.items() if name.startswith(GENERATOR)}
        moved = {"z": normals(self._noise_seed(epoch), (self.dreams, self._latent)), **adapted}
        zeros = {f"adam.{kind}.{name}": np.zeros_like(value) for name, value in moved.items() for kind in ("m", "v")}
        return {**moved, **zeros, "path": np.zeros((0, *self.student.data.feature.shape), np.uint8)}

    def _ask_to_dream(self, state: State, place: Place) -> Ask:
        seeded = place.step == 0 and self.seeded
        generator = _adapted(state.tensors)
        task = Task(
            program="generator_step",
            feed="noise" if seeded else "announced",
            load=tuple(sorted(generator)),
            batch_size=self.dreams if seeded else 0,
            seed=self._noise_seed(place.epoch) if seeded else None,
            settings={**self.factors, GRADIENT_SCALE: self.gradient_scale},
            send=(GRADIENTS + "*", GRADIENT_Z),
            encoding=self.encoding,
        )
        announced = generator if seeded else {X: state.tensors["z"], **generator}
        return self._ask((task,), announced, place, durable=place.step % self.refresh == 0, fusion=self.fusion)

    def _dreamed(self, state: State, fused: Fused, place: Place) -> dict[str, Array]:
        tensors, unsure = without_unsure(state.tensors)
        gradients = {name: value / np.float32(self.gradient_scale) for name, value in fused.tensors.items()}
        if self._is_adversarial(place):
            gradients = {name: g - np.float32(self.adversarial) * unsure[name] for name, g in gradients.items()}
        for name, gradient in gradients.items():
            latent = name == GRADIENT_Z
            mine = "z" if latent else ADAPTED + name.removeprefix(GRADIENT)
            m, v = f"adam.m.{mine}", f"adam.v.{mine}"
            rate = self.dream_rate if latent else self.generator_rate
            step, tensors[m], tensors[v] = adam(
                self._clipped(gradient) if latent else gradient, tensors[m], tensors[v], place.step + 1, rate
            )
            tensors[mine] = tensors[mine] - step
        if place.step == self.exchanges - 1:
            for name in _adapted(tensors):
                change = tensors[ADAPTED + name] - tensors[name]
                tensors[name] = tensors[name] + np.float32(self.meta_rate) * change
        return tensors

    @property
    def _latent(self) -> int:
        weight: Array = self.initial[GENERATOR + "start.weight"]  # of the Linear that z enters
        return int(weight.shape[1])

    def _work_of_dreams(self, state: State, place: Place) -> Work | None:
        """G(z) where a dream is to be seen, or all of them are done; before each step the gradients of
        mean H(softmax s(G(z))) by G and z."""
        tensors = state.tensors
        if place.phase == "label" and "dreams" not in tensors:
            return self._imagine(state, tensors["z"])
        if place.phase != "dream":
            return None
        if len(tensors["path"]) < self._pictures(place.step):
            return self._imagine(state, tensors["z"][:1])
        if not self._is_adversarial(place) or UNSURE_OF + GRADIENT_Z in tensors:
            return None
        generator = _adapted(tensors)
        task = Task(
            program="generator_step",
            feed="announced",
            load=tuple(sorted(generator)),
            batch_size=0,
            settings=UNSURE,
            send=(GRADIENTS + "*", GRADIENT_Z),
        )
        return self._for_student(state, task, {X: tensors["z"], **generator})

    def _added(self, state: State, done: Worked, place: Place) -> Tensors:
        if X not in done.tensors:
            return super()._added(state, done, place)
        imagined = done.tensors[X]  # [n, ...] in the input space
        path = np.concatenate([state.tensors["path"], self.pixels(imagined[:1])])
        return {"path": path} | ({"dreams": imagined} if place.phase == "label" else {})

    def _imagine(self, state: State, z: Array) -> Work:
        generator = _adapted(state.tensors)
        task = Task(program="generate", feed="announced", load=tuple(sorted(generator)), batch_size=0, send=(X,))
        return self._for_student(state, task, {X: z, **generator})

    def _pictures(self, step: int) -> int:
        """How many pictures of a dream there are before this step: the first of all, and those of steps."""
        return 1 + sum(self._is_pictured(before) for before in range(step))


def _adapted(tensors: Tensors) -> dict[str, Array]:
    """G as an epoch has made it, by the names that devices know."""
    return {k.removeprefix(ADAPTED): v for k, v in tensors.items() if k.startswith(ADAPTED)}
