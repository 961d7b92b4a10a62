"""The sections of a run file as frozen values; `run_file.py` reads and checks them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edgefl.aggregator.settings import RoundSettings
from edgefl.protocol import NAME

Share = Annotated[float, Meta(gt=0, le=1)]
BrokerEngine = Literal["auto", "mosquitto", "iotcore"]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class BrokerSection(_Section, frozen=True):
    """`[broker]`: where it is. Without `url`, `edgefl run` starts an embedded one.

    Certificate files (PEM) are for mqtts://. The aggregator answers each device `requests_per_s` times a second, and
    `requests_burst` times at once in every round; what comes beyond that is passed over.
    """

    url: str | None = None
    engine: BrokerEngine = "auto"
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    requests_per_s: Annotated[float, Meta(gt=0)] = 10.0
    requests_burst: Annotated[float, Meta(ge=10)] = 20.0


class EvaluateSection(_Section, frozen=True):
    """`[evaluate]`: held-out data on the aggregator; the run ends early at `target_accuracy` (0 to 1).

    Where a data set has a test part, that part is used. `held_out` of its examples are set aside and never evaluated
    on: learned weights are sought on them, in `held_out_steps` steps a round. `label` names the label's column, where
    `data` is a table.
    """

    data: str
    label: str | None = None
    target_accuracy: Share | None = None
    batch_size: Annotated[int, Meta(ge=1)] = 256
    held_out: Annotated[int, Meta(ge=0)] = 0
    held_out_steps: Annotated[int, Meta(ge=1)] = 20


class ModelSection(_Section, frozen=True):
    """`[student]`: the model that learns on the aggregator, for a method that has one.

    path        a bundle; or `model` and `options` to make one: FILE:OBJECT or zoo:NAME, and options of `edgefl export`
    """

    path: str | None = None
    model: str | None = None
    options: dict[str, Any] = {}


class BundleSection(ModelSection, frozen=True):
    """`[[bundle]]`: the bundle of a class of devices. The first that suits a device is its, for the whole run.

    path, model, options    as of `[student]`
    name        of the class; default: of the bundle or the model
    condition   the key `for`: on what a device states, for example "memory_mb >= 2000 and cores >= 4"
    devices     patterns of names, one of which must match
    settings    of programs, for these devices: max_steps = 4
    """

    name: Annotated[str, Meta(pattern=NAME)] = ""
    condition: str = msgspec.field(default="", name="for")
    devices: tuple[str, ...] = ()
    settings: dict[str, float] = {}

    @property
    def class_name(self) -> str:
        if self.name or self.path is not None:
            return self.name or Path(self.path or "").name.removesuffix(".bundle")
        return bundle_name(self.model or "")


class ProfileSection(_Section, frozen=True):
    """`[[fleet.profile]]`: what emulated devices state and set for themselves; they take the profiles by turns."""

    memory_mb: Annotated[int, Meta(ge=1)] | None = None
    cores: Annotated[int, Meta(ge=1)] | None = None
    settings: dict[str, float] = {}


class FleetSection(_Section, frozen=True):
    """`[fleet]`: the devices that `edgefl run` emulates, each a process, and how they share `data`.

    partition    "iid", "dirichlet" (label shares drawn with `alpha`), "shards" (`per_device` sorted pieces) or
                 "classes" (`per_device` labels)
    label        the name of the label's column, where `data` is a table
    examples     use so many of the training examples, drawn by the run's seed; None for all
    """

    devices: Annotated[int, Meta(ge=1, le=1000)]
    data: str
    label: str | None = None
    partition: Literal["iid", "dirichlet", "shards", "classes"] = "iid"
    alpha: Annotated[float, Meta(gt=0)] = 0.5
    per_device: Annotated[int, Meta(ge=1)] = 2
    examples: Annotated[int, Meta(ge=1)] | None = None
    threads: Annotated[int, Meta(ge=1)] = 1
    profile: tuple[ProfileSection, ...] = ()


class RunFile(_Section, frozen=True):
    """A whole run file. Exactly one of `bundle` and `model` is given; `bundle` is a path, or sections [[bundle]].

    Paths in it are relative to its folder, but `runs`: run directories are made where you are.
    """

    name: Annotated[str, Meta(pattern=NAME, max_length=20)]
    bundle: str | tuple[BundleSection, ...] | None = None
    model: str | None = None
    seed: Annotated[int, Meta(ge=0)] = 0
    runs: str = "runs"
    broker: BrokerSection = BrokerSection()
    method: dict[str, Any] = {}
    round: RoundSettings = RoundSettings()
    evaluate: EvaluateSection | None = None
    fleet: FleetSection | None = None
    student: ModelSection | None = None

    @property
    def bundles(self) -> tuple[BundleSection, ...]:
        """The classes of devices; one, of all devices, where the file only names a bundle or a model."""
        if isinstance(self.bundle, tuple):
            return self.bundle
        return (BundleSection(path=self.bundle, model=self.model),)


def bundle_name(model: str) -> str:
    """What a bundle is called: OBJECT, or the file's name where OBJECT says nothing ("model")."""
    file, _, name = model.rpartition(":")
    return Path(file).stem if name == "model" else name
