"""A model named in text, with options in text, becomes a bundle: for the command line and for run files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from edgefl.bundle import Bundle
from edgefl.data_contract import Normalisation
from edgefl.errors import ConfigError, InputError
from edgefl.manifest import PORTABLE
from edgefl_exporter.cache import sources, store
from edgefl_exporter.cache.content import Unnameable, content
from edgefl_exporter.class_names import read_class_names
from edgefl_exporter.memory.budget import budget_of
from edgefl_exporter.models.load_model import Loaded, load_loss, load_model
from edgefl_exporter.options import Options, checked, options
from edgefl_exporter.programs.losses import CrossEntropy, Loss
from edgefl_exporter.programs.optimizers import SGD, Adam, Optimizer
from edgefl_exporter.programs.update import Group
from edgefl_exporter.recipe import Recipe


def export_source(
    source: str,
    given: Mapping[str, Any] | Options,
    out: Path,
    name: str,
    *,
    where: str = "",
    progress: Callable[[str], None] | None = None,
    cache: bool = True,
) -> Bundle:
    """Export the model that `source` names, FILE:OBJECT or zoo:NAME, to the directory `out`.

    `given`: the options that `edgefl export --help` names, by name, as a TOML file has them: {"programs": ["train"],
    "micro-batches": 4}. `where` is their place, for errors. With `cache`, what was made before of the same model,
    options and versions is taken from `edgefl_exporter.cache.store`, with equal bytes. Raises ConfigError for an
    unknown option, a wrong value or one of another method, InputError for a model that cannot be loaded, and what
    `build` raises.
    """
    try:
        said = given if isinstance(given, Options) else read(source, given)
        shape = said.shape
        budget_of(said.memory)
    except InputError as error:
        raise _placed(error, where) from error
    loaded = load_model(source, shape, seed=said.seed)
    said = replace(said, method=said.method.load(said, source, loaded.example))
    try:
        recipe = recipe_of(said, loaded)
    except InputError as error:
        raise _placed(error, where) from error
    tell = progress or (lambda line: None)
    place = store.folder() if cache else None
    key = _key(recipe, loaded) if place else None
    if place and key and (found := store.find(place, key)):
        tell(f"made before, on this machine, of the same model and options: {found.path.parent}")
        return store.copy(found, out, name)
    from edgefl_exporter.build import build  # PyTorch's exporter takes seconds to import

    bundle = build(recipe, loaded.module, loaded.example, out=out, name=name, progress=progress)
    if place and key:
        store.keep(place, key, bundle, tell)
    return bundle


def read(source: str | None, given: Mapping[str, Any]) -> Options:
    """The options for the model that a text names beside them. Raises ConfigError."""
    said = options(checked(given))
    said.method.source(source)
    return said


def recipe_of(said: Options, loaded: Loaded) -> Recipe:
    """The recipe of options for a model that was loaded. Raises InputError for what makes no sense."""
    return Recipe(
        method=said.method,
        loss=_loss(said, loaded),
        optimizer=_optimizer(said),
        groups=tuple(_group(text) for text in said.group),
        clip_norm=said.clip_norm,
        proximal=said.proximal,
        micro_batches=said.micro_batches,
        train=said.train,
        lora=said.lora or 0,
        private=said.private,
        share_as=dict(_renaming(text) for text in said.share_as),
        batch=_batch(said.batch),
        programs=said.programs,
        normalisation=Normalisation(said.mean, said.std),
        range=_range(said.range) or loaded.range,
        classes=said.classes,
        memory=said.memory,
        memory_batch=said.memory_batch,
        seed=said.seed,
        target=said.target,
        training_python=Path(said.training_python) if said.training_python else None,
    )


def _key(recipe: Recipe, loaded: Loaded) -> str | None:
    """What a bundle's bytes are determined by, but for its name; None where that cannot be said."""
    if recipe.target != PORTABLE:  # is made by another environment
        return None
    try:
        named = dataclasses.replace(recipe, classes=read_class_names(recipe.classes))
        return content(sources.versions(), sources.own_code(), named, tuple(loaded))
    except Unnameable:
        return None


def _placed(error: InputError, where: str) -> InputError:
    """The error, with the place of the options."""
    return ConfigError(f"{where}: {error.message}", hint=error.hint) if where else error


def _loss(said: Options, loaded: Loaded) -> Loss:
    loss = load_loss(said.loss or loaded.loss, loaded.labels)
    if not said.label_smoothing:
        return loss
    if loss.name != CrossEntropy.name:
        raise InputError(
            f"--label-smoothing is of cross_entropy; the loss is {loss.name}", hint="leave --label-smoothing out"
        )
    return CrossEntropy(label_smoothing=said.label_smoothing)


def _optimizer(said: Options) -> Optimizer:
    """The optimizer that the options name; of SGD what they do not say is the method's."""
    numbers = ("learning_rate", "momentum", "weight_decay")
    given: dict[str, Any] = {name: value for name in numbers if (value := getattr(said, name)) is not None}
    if said.optimizer == "sgd":
        return SGD(**said.method.sgd() | given, nesterov=said.nesterov)
    for name in ("momentum", "nesterov"):
        if getattr(said, name):
            raise InputError(f"--{name} is of sgd; {said.optimizer} has its own moments", hint=f"leave --{name} out")
    given.pop("momentum", None)
    return Adam(**given, decoupled=said.optimizer == "adamw")


def _group(text: str) -> Group:
    """ "head.*:learning_rate=0.1,clip_norm=1" as a Group."""
    patterns, _, rest = text.partition(":")
    numbers: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, _, value = part.partition("=")
        if key not in ("learning_rate", "weight_decay", "clip_norm"):
            raise InputError(
                f"--group {text!r}: {key!r} is not learning_rate, weight_decay or clip_norm",
                hint="for example --group 'head.*:learning_rate=0.1,weight_decay=0'",
            )
        try:
            numbers[key] = float(value)
        except ValueError:
            raise InputError(f"--group {text!r}: {key} is {value!r}; expected a number") from None
    return Group(tuple(part.strip() for part in patterns.split(",") if part.strip()), **numbers)


def _renaming(text: str) -> tuple[str, str]:
    """ "classifier.*=head.*" -> ("classifier.*", "head.*")."""
    pattern, _, group = text.partition("=")
    if not pattern or not group or pattern.count("*") != group.count("*") or pattern.count("*") > 1:
        raise InputError(
            f"--share-as {text!r} is not NAME=GROUP",
            hint="for example --share-as 'classifier.*=head.*', one * on each side",
        )
    return pattern, group


def _range(numbers: tuple[float, ...]) -> tuple[float, float] | None:
    if not numbers:
        return None
    if len(numbers) != 2:
        raise InputError(f"--range is {', '.join(f'{n:g}' for n in numbers)}; expected LOW,HIGH", hint="--range 0,1")
    return numbers[0], numbers[1]


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--batch {text!r} is neither dynamic nor a number of examples", hint="for example --batch 32")
    return int(text)
