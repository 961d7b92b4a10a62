"""The options of an export as text says them: on the command line, in a run file, in pyproject.toml. Needs no torch.

They are declared once, here and in `edgefl_exporter.methods`: the command makes its own of them, and what a file says
is checked against them.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from edgefl import own_code
from edgefl.errors import ConfigError, InputError, nearest
from edgefl_exporter.methods import DEFAULT, METHODS, Method, method_named
from edgefl_exporter.methods.method import NotOfMethod

Share = Annotated[float, Meta(ge=0, lt=1)]
NotNegative = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Texts = tuple[str, ...]  # also "a,b"
Numbers = tuple[float, ...]  # also 0.5, or "0.5,0.5"
Each = Annotated[tuple[str, ...], Meta(extra={"each": True})]  # several texts that may hold commas; also one

HELP = {
    "method": "Whose programs; those of the first serve every method that is not named here. Or FILE.py:CLASS.",
    "input": "Shape of one example, e.g. 1x8x8, where MODEL gives only a module.",
    "loss": "cross_entropy, mse ... or FILE:FUNCTION; default: the zoo model's own, or cross_entropy.",
    "label_smoothing": "Of cross_entropy.",
    "learning_rate": "Default 0.1 for sgd, 0.001 for adam; a run can set another.",
    "momentum": "Of sgd; default 0.",
    "nesterov": "Of sgd with momentum.",
    "weight_decay": "Default 0.",
    "clip_norm": "Clip all gradients together to this norm.",
    "proximal": "mu: pull the weights to where a round began; a run can set another.",
    "group": "Parameters apart: 'head.*:learning_rate=0.1,weight_decay=0,clip_norm=1'; the rate is times the setting.",
    "train": "Train only these parameters, e.g. 'head.*,*.norm.*'; the rest stays as it is.",
    "lora": "Train adapters of this rank beside frozen weights.",
    "private": "State that never leaves a device although it trains, e.g. 'body.*'.",
    "share_as": "'classifier.*=head.*': under which name a tensor is fused with other bundles'; default: its own.",
    "micro_batches": "Batches per step.",
    "batch": "dynamic, or one size to which batches are padded.",
    "programs": "Also: gradient.",
    "classes": "Names of all classes in their order: a,b,c or a FILE with one on each line.",
    "range": "Lowest and highest value of the features, before normalisation: 0,1",
    "data": "Examples, as a device has them: whose range, and whose names of classes, are the bundle's.",
    "mean": "Normalisation, one number or one per channel: 0.5,0.5,0.5",
    "std": "Like --mean: x becomes (x - mean) / std.",
    "memory": "What a training step may grow a process by, e.g. 48MB: the fastest program that fits.",
    "memory_batch": "The batch size that --memory holds for; default: that of --batch, or 32.",
    "seed": "Of the initial weights and of the proof's data.",
    "target": "The other one adds files for devices with that runtime.",
    "training_python": "An interpreter whose environment has onnxruntime-training: makes and proves the files for it.",
}


class Options(Struct, frozen=True, kw_only=True):
    """What every method has, and the method with its own options. HELP says what each is."""

    method: Method
    input: str | None = None
    loss: str | None = None
    label_smoothing: Share = 0.0
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Positive | None = None
    momentum: Annotated[float, Meta(ge=0, le=1)] | None = None
    nesterov: bool = False
    weight_decay: NotNegative | None = None
    clip_norm: Positive | None = None
    proximal: NotNegative | None = None
    group: Each = ()
    train: Texts = ()
    lora: Count | None = None
    private: Texts = ()
    share_as: Each = ()
    micro_batches: Count = 1
    batch: str = "dynamic"
    programs: Texts = ("train", "evaluate", "predict")
    classes: Texts = ()
    range: Numbers = ()
    mean: Numbers = (0.0,)
    std: Numbers = (1.0,)
    memory: str | None = None
    memory_batch: Count | None = None
    seed: Annotated[int, Meta(ge=0)] = 0
    target: Literal["portable", "onnxruntime-training"] = "portable"
    training_python: str | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """`input` "1x8x8" as (1, 8, 8). Raises InputError."""
        if self.input is None:
            return None
        try:
            shape = tuple(int(part) for part in self.input.lower().split("x"))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            raise InputError(
                f"--input {self.input!r} is not a shape", hint="write one example's dimensions: --input 1x8x8"
            )
        return shape


@dataclass(frozen=True)
class Option:
    """One option, as a command line needs to know it.

    text      what it is, for the help
    kind      bool, int, float, str, or a tuple of texts or numbers, which may be given with commas
    limits    ge, gt, le, lt of a number
    choices   where only some texts are possible
    each      of a tuple: one text each time it is given
    own       whether FILE.py:CLASS may stand beside the choices
    """

    name: str
    kind: Any
    text: str = ""
    default: Any = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    each: bool = False
    own: bool = False

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def several(self) -> bool:
        return typing.get_origin(self.kind) is tuple

    def is_own(self, value: Any) -> bool:
        """Whether it names code of somebody's own, FILE.py:CLASS, where that may stand beside the choices."""
        return self.own and isinstance(value, str) and own_code.own(value) is not None

    def read(self, value: Any, where: str) -> Any:
        """The value as its kind. Raises ConfigError for one that it cannot be."""
        try:
            if self.choices and value not in self.choices and not self.is_own(value):
                raise msgspec.ValidationError
            return msgspec.convert(self._plain(value), Annotated[self.kind, Meta(**self.limits)], strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}{self.flag} is {value!r}; expected {self.expected}") from error

    @property
    def expected(self) -> str:
        """What it can be, in words."""
        if self.choices:
            choices = (*self.choices, "FILE.py:CLASS") if self.own else self.choices
            return f"{', '.join(choices[:-1])} or {choices[-1]}"
        kind = typing.get_args(self.kind)[0] if self.several else self.kind
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
        limits = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        within = ", ".join(f"{limits[name]} {limit:g}" for name, limit in self.limits.items())
        return f"{words}{within and f', {within}'}{', or a list of them' if self.several else ''}"

    def _plain(self, value: Any) -> Any:
        """Texts with commas as lists, and numbers where texts may be numbers: `batch = 16`, `mean = 2`."""
        if self.several and not isinstance(value, (list, tuple)):
            parts = str(value).split(",") if not self.each else [str(value)]
            return [part.strip() for part in parts if part.strip()]
        return str(value) if self.kind is str and isinstance(value, int) and not isinstance(value, bool) else value


def _declared(kind: type[Struct], texts: Mapping[str, str]) -> dict[str, Option]:
    """The fields of a struct as options."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        one.name: _option(one.name, hints[one.name], one.default, texts.get(one.name, ""))
        for one in msgspec.structs.fields(kind)
        if not one.required
    }


def _option(name: str, hint: Any, default: Any, text: str) -> Option:
    """A field `name: hint = default`."""
    if type(None) in typing.get_args(hint):  # X | None
        (hint,) = (one for one in typing.get_args(hint) if one is not type(None))
    kind, *metas = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    limits = {n: value for meta in metas for n in ("ge", "gt", "le", "lt") if (value := getattr(meta, n)) is not None}
    each = any((meta.extra or {}).get("each") for meta in metas)
    return Option(name, str if choices else kind, text, default, limits, choices, each)


DATA = Option("data", str, HELP["data"])  # read by `edgefl.runs.example_data`, which makes `classes` and `range` of it
METHOD = Option("method", str, HELP["method"], DEFAULT, {}, tuple(METHODS), own=True)
COMMON: dict[str, Option] = _declared(Options, HELP)
OWN: dict[str, dict[str, Option]] = {name: _declared(method, method.options) for name, method in METHODS.items()}
ALL: dict[str, Option] = {
    "method": METHOD,
    "data": DATA,
    **COMMON,
    **{name: one for own in OWN.values() for name, one in own.items()},
}


def checked(given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """What a file says, by option; `micro-batches` is `micro_batches` too. `where` is the place, for errors.

    Raises ConfigError for an unknown option, or a value that it cannot have.
    """
    before = f"{where}: " if where else ""
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in ALL:
            names = [one.flag.removeprefix("--") for one in ALL.values()]
            raise ConfigError(f"{before}unknown key {key!r}", hint=nearest(key.replace("_", "-"), names))
        found[name] = ALL[name].read(value, before)
    return found


def options(given: Mapping[str, Any]) -> Options:
    """The options of what is `checked`. Raises NotOfMethod for an option that the method has not."""
    said = dict(given)
    if "data" in said:
        raise InputError("--data is read by `edgefl export` and by run files", hint="say classes and range instead")
    method = method_named(said.pop("method", DEFAULT))
    known = OWN[method.name] if METHODS.get(method.name) is method else {}
    for owner, own in OWN.items():
        if alien := [name for name in own if said.get(name) and name not in known]:
            raise NotOfMethod(f"{ALL[alien[0]].flag} is of --method {owner}")
    mine = method(**{name: said.pop(name) for name in known if name in said})
    mine.check(name for name, value in said.items() if value)
    return Options(method=mine, **{name: value for name, value in said.items() if name in COMMON})
