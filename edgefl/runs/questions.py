"""What a run asks of its method beside `start`, `ask` and `advance`, and what is taken for an answer where it has none.

A method answers with an attribute of that name:

    length                      the setting that says how long a run is, which a resume may change. Else "rounds"
    devices                     all devices that may ever take part. Else as many as `[round] max_devices`
    check(manifests, fraction)  raises ConfigError for bundles, or a share of devices asked, that it cannot work with
    rehearse()                  one ask of each kind that the run will make, to check before it begins. Else the first
    models(tensors)             the models that its state holds whole. Else those of the classes whose devices keep
                                nothing of them for themselves
    pictures(state)             sheets for a person, by the name of their file; {} of most rounds. Else none
    warning(measured)           what a person should know of what each device measured; None: nothing
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgefl.aggregator.checks import personal
from edgefl.aggregator.classes import DeviceClass, in_state
from edgefl.manifest import Manifest
from edgefl.method import Ask, Method, Model, Sheet, State
from edgefl.tensors import Tensors


def length_of(kind: type[Any] | None) -> str:
    """The setting of a kind of method that says how long a run is."""
    length: str = getattr(kind, "length", "rounds")
    return length


def rounds_of(method: Method) -> int | None:
    """How many rounds the run has at most; None where its length is counted otherwise."""
    rounds = getattr(method, "rounds", None) if getattr(method, "length", "rounds") == "rounds" else None
    return rounds if isinstance(rounds, int) else None


def most_devices(method: Method) -> int | None:
    """All devices that may ever take part; None where the method does not say."""
    most: int | None = getattr(method, "devices", None)
    return most


def check(method: Method, manifests: Sequence[Manifest], fraction: float) -> None:
    """Raise ConfigError for bundles, or a share of devices asked in a round, that the method cannot work with."""
    if (own := getattr(method, "check", None)) is not None:
        own(manifests, fraction)


def rehearsal(method: Method) -> tuple[Ask, ...]:
    """One ask of each kind that a run will make."""
    if (own := getattr(method, "rehearse", None)) is not None:
        asks: tuple[Ask, ...] = own()
        return asks
    first = method.ask(method.start())
    return () if first is None else (first,)


def has_models(method: Method) -> bool:
    """Whether the method says itself which models its state holds."""
    return getattr(method, "models", None) is not None


def models_of(method: Method, classes: Sequence[DeviceClass], tensors: Tensors) -> Sequence[Model]:
    """The models that these tensors of a method's state hold whole."""
    if (own := getattr(method, "models", None)) is not None:
        models: Sequence[Model] = own(tensors)
        return models
    whole = [one for one in classes if not personal_of(method, one)]
    return [Model(one.name, one.bundle, in_state(one.bundle.manifest, tensors)) for one in whole]


def personal_of(method: Method, one: DeviceClass) -> list[str]:
    """What of its model only a device has: see `checks.personal`."""
    state = method.start()
    return personal(method.ask(state) or Ask((), {}), one.bundle.manifest, state.tensors)


def pictures_of(method: Method, state: State) -> Mapping[str, Sheet]:
    """Sheets of pictures of the state after a round, by the name of their file."""
    own = getattr(method, "pictures", None)
    return {} if own is None else own(state)


def warning_of(method: Method, measured: Mapping[str, Mapping[str, float | None]]) -> str | None:
    """What a person should know of what each device measured in a round."""
    own = getattr(method, "warning", None)
    return None if own is None else own(measured)
