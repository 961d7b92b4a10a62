"""What a bundle is made by: every choice beside the model itself, as one frozen value. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgefl.data_contract import Normalisation
from edgefl.errors import InputError, nearest
from edgefl.manifest import PORTABLE
from edgefl_exporter.methods import DEFAULT, Method, method_named

if TYPE_CHECKING:  # torch takes seconds to import
    from edgefl_exporter.programs.losses import Loss
    from edgefl_exporter.programs.optimizers import Optimizer
    from edgefl_exporter.programs.program import Definition
    from edgefl_exporter.programs.supervised import Supervised
    from edgefl_exporter.programs.update import Group

PROGRAMS = ("train", "evaluate", "predict")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The choices of an export.

    method           whose bundle it is: a Method, or a name of `edgefl_exporter.methods.METHODS`
    loss             a name of `edgefl_exporter.programs.losses.LOSSES`, or a Loss
    optimizer        by default the method's, which is SGD()
    groups, clip_norm, proximal, micro_batches   see `edgefl_exporter.programs.update.Update`
    train, lora      what trains, see `edgefl_exporter.models.parts.take_apart`; what does not never leaves a device
    private          patterns of state that never leaves a device although it trains
    share_as         name -> fusion group of a shared tensor, its own name by default; one * on both sides stands for
                     the same text: {"classifier.*": "head.*"}
    batch            a fixed batch size for the programs that train; by default it is dynamic
    programs         of: train, gradient, evaluate, predict. With `proximal` there is also `anchor`
    range            lowest and highest value of the features, before they are normalised; None: where the example input
                     is filled with values of 0..1, that, else nobody has said
    classes          names of the classes in their order: a list, "a,b,c", or a file with one on each line
    memory           what a training step may make a process grow by: bytes, or a text such as "48MB"; see
                     `edgefl_exporter.memory`. The program `train` is then the fastest that fits
    memory_batch     the batch size that this holds for, where `batch` does not say one; default 32
    seed             of the proof's data, and of what a method adds to a model
    target           "onnxruntime-training" adds files for devices with that runtime, made and proven by
                     `training_python`, the interpreter of another environment

    What a method adds, and whoever writes one:

    announced        patterns of state that the aggregator sets although no training changes it
    own_programs     makers of its own programs
    controls, shifts   see `edgefl_exporter.programs.update.Update`; the method brings the program
    """

    method: Method | str = DEFAULT
    loss: str | Loss = "cross_entropy"
    optimizer: Optimizer | None = None
    groups: Sequence[Group] = ()
    clip_norm: float | None = None
    proximal: float | None = None
    micro_batches: int = 1
    train: Sequence[str] = ()
    lora: int = 0
    private: Sequence[str] = ()
    share_as: Mapping[str, str] = field(default_factory=dict)
    batch: int | None = None
    programs: Sequence[str] = PROGRAMS
    normalisation: Normalisation = Normalisation()  # noqa: RUF009  (frozen)
    range: tuple[float, float] | None = None
    classes: str | Path | Sequence[str] = ()
    memory: int | str | None = None
    memory_batch: int | None = None
    seed: int = 0
    target: str = PORTABLE
    training_python: Path | None = None
    announced: Sequence[str] = ()
    own_programs: Sequence[Callable[[Supervised], Definition]] = ()
    controls: bool = False
    shifts: bool = False

    @classmethod
    def of(cls, **options: Any) -> Recipe:
        """A recipe of keywords. Raises InputError for an unknown one."""
        known = [one.name for one in fields(cls)]
        for name in options:
            if name not in known:
                raise InputError(f"unknown option {name!r}", hint=nearest(name, known))
        return cls(**options)

    def complete(self) -> tuple[Recipe, Method]:
        """With the method's defaults, and what it adds. Raises InputError for what it does not let choose."""
        method = method_named(self.method)() if isinstance(self.method, str) else self.method
        method.check(name for name in ("private",) if getattr(self, name))
        given = {name: method.defaults[name] for name in ("clip_norm", "proximal") if name in method.defaults}
        own: dict[str, Any] = {name: value for name, value in given.items() if getattr(self, name) is None}
        return method.add(replace(self, **own)), method
