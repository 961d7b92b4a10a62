"""A run file (TOML) as frozen values. An unknown key or a wrong value is an error that names the nearest key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import tomli_w
from msgspec import Meta

from edgefl.aggregator.chosen import name_of
from edgefl.aggregator.classes import parse_condition
from edgefl.aggregator.coordinator import RoundSettings
from edgefl.aggregator.fusion import fusion_of
from edgefl.aggregator.weights import LEARNED, rule_of
from edgefl.errors import ConfigError, nearest
from edgefl.files import read_bytes
from edgefl.method import Method
from edgefl.methods import DEFAULT, method_named
from edgefl.own_code import own
from edgefl.protocol import NAME
from edgefl.runs.questions import length_of

Share = Annotated[float, Meta(gt=0, le=1)]
STUDENT = "student"  # the field of a method that has one
# Keys of [method] that may name FILE.py:NAME -> what a copy is called in the run directory.
OWN_CODE = {"name": "method.py", "fusion": "fusion.py", "weight": "weights.py"}
SOURCES = ("small", "local", "loss")  # options of `edgefl export` that may name FILE:OBJECT
MAX_RUN_FILE_BYTES = 2**20
MAX_DEPTH = 10  # tables and lists in each other
BrokerEngine = Literal["auto", "mosquitto", "iotcore"]


_Source = TypeVar("_Source", bound="ModelSection")


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
    on: learned weights are sought on them, in `held_out_steps` steps a round.
    """

    data: str
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
    examples     use so many of the training examples, drawn by the run's seed; None for all
    """

    devices: Annotated[int, Meta(ge=1, le=1000)]
    data: str
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


def read_run_file(path: Path) -> RunFile:
    """Read a run file; relative paths in it become absolute. Raises ConfigError with one clear line."""
    try:
        text = read_bytes(path, MAX_RUN_FILE_BYTES, error=ConfigError).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"run file {path} cannot be read: it is not UTF-8 text") from error
    run = parse_run_file(text, where=str(path))
    base = path.resolve().parent
    evaluate, fleet = run.evaluate, run.fleet
    if evaluate is not None:
        evaluate = msgspec.structs.replace(evaluate, data=_beside(base, evaluate.data))
    if fleet is not None:
        fleet = msgspec.structs.replace(fleet, data=_beside(base, fleet.data))
    broker = msgspec.structs.replace(
        run.broker, **{k: _beside(base, v) for k in ("ca", "cert", "key") if (v := getattr(run.broker, k)) is not None}
    )
    method = dict(run.method)
    for key in OWN_CODE:
        if found := own_code_of(method, key):
            method = with_own_code(method, key, base / found[0])
    return msgspec.structs.replace(
        run,
        method=method,
        bundle=_bundles_beside(base, run.bundle),
        model=_model_beside(base, run.model),
        broker=broker,
        evaluate=evaluate,
        fleet=fleet,
        student=run.student and _source_beside(base, run.student),
    )


def run_file_of(given: RunFile | Mapping[str, Any] | str | Path) -> RunFile:
    """A run file as a value, checked: of one, of the same in dicts and lists as TOML has them, or of a file's path.

    Paths in a value are relative to where it is used, those in a file to its folder. Raises ConfigError.
    """
    if isinstance(given, (str, Path)):
        return read_run_file(Path(given))
    raw = msgspec.to_builtins(given) if isinstance(given, RunFile) else dict(given)
    return _checked(raw, where="run")


def parse_run_file(text: str, *, where: str) -> RunFile:
    """A run file from its text."""
    return _checked(from_toml(text, where=where), where=where)


def _checked(raw: dict[str, Any], *, where: str) -> RunFile:
    _check_keys(raw, RunFile, where, "")
    _check_values(raw, where, "")
    try:
        run = msgspec.convert(raw, RunFile)
    except (msgspec.ValidationError, OverflowError) as error:
        raise ConfigError(f"{where}: {_readable(error)}") from error
    if (run.bundle is None) == (run.model is None) or "" in (run.bundle, run.model):
        raise ConfigError(f"{where}: give either `bundle` or `model`", hint='for example: bundle = "digits.bundle"')
    _check_devices(run, where)
    _check_bundles(run.bundles, where)
    _check_student(run, where)
    _check_method(run, where)
    learned = name_of(run.method.get("weight", ""), "weight rule") == LEARNED
    if learned and (run.evaluate is None or run.evaluate.held_out == 0):
        raise ConfigError(
            f"{where}: weight {LEARNED!r} needs held-out examples on the aggregator",
            hint="set held_out = 500 in [evaluate]",
        )
    return run


def from_toml(text: str, *, where: str) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError, its line beginning with `where`."""
    try:
        raw: dict[str, Any] = msgspec.toml.decode(text)
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deep") from error
    except (msgspec.DecodeError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise ConfigError(f"{where}: not TOML: {error}") from error
    return raw


def own_code_of(method: Mapping[str, Any], key: str) -> tuple[Path, str] | None:
    """File and name of one's own code that `key` of [method] chooses: FILE.py:NAME, alone or with numbers."""
    chosen = method.get(key)
    return own(str(chosen.get("name") if isinstance(chosen, Mapping) else chosen))


def with_own_code(method: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """`method` where `key` names the same in another file."""
    found = own_code_of(method, key)
    assert found is not None
    chosen, name = method[key], f"{path.resolve()}:{found[1]}"
    return {**method, key: {**chosen, "name": name} if isinstance(chosen, Mapping) else name}


def _check_method(run: RunFile, where: str) -> None:
    """Raise ConfigError for a method that could not be made. One's own code is looked at when a run is prepared: a run
    that goes on has its own copy."""
    theirs = [key for key in OWN_CODE if own_code_of(run.method, key)]
    if "name" not in theirs:
        built_in = {key: value for key, value in run.method.items() if key not in theirs}
        make_method(msgspec.structs.replace(run, method=built_in), {}, where=where)


def make_method(run: RunFile, initial: Mapping[str, Any], *, where: str, student: object = None) -> Method:
    """The run's method with its settings. Raises ConfigError for an unknown method, key, or wrong value."""
    settings = dict(run.method)
    settings.pop("name", None)
    kind = _kind_of(run, where)
    allowed = {f for f in kind.__struct_fields__ if f not in ("initial", STUDENT)}
    for key in settings:
        if key not in allowed:
            raise ConfigError(
                f"{where}: unknown key {key!r} in [method]",
                hint=nearest(key, sorted(allowed)),
            )
    given = {"initial": dict(initial)} | ({STUDENT: student} if STUDENT in kind.__struct_fields__ else {})
    seed = {"seed": run.seed} if "seed" in allowed else {}
    try:
        method = msgspec.convert({**seed, **settings, **given}, kind)
    except (msgspec.ValidationError, OverflowError) as error:
        raise ConfigError(f"{where}: [method]: {_readable(error)}") from error
    fusion, weight = getattr(method, "fusion", "mean"), getattr(method, "weight", "examples")
    try:
        fusion_of(fusion)
        rule = rule_of(weight)
    except ConfigError as error:
        raise ConfigError(f"{where}: [method]: {error.message}", hint=error.hint) from error
    if rule.name == LEARNED and (name := name_of(fusion, "fusion")) != "mean":
        raise ConfigError(f"{where}: weight {LEARNED!r} is of a mean, not of fusion {name!r}")
    result: Method = method
    return result


def _kind_of(run: RunFile, where: str) -> type[Any]:
    try:
        return method_named(run.method.get("name", DEFAULT))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from error


def to_toml(run: RunFile) -> str:
    """The run file as text again, with paths resolved. Without the broker's password: run directories are shared."""
    if run.broker.url is not None:
        run = msgspec.structs.replace(run, broker=msgspec.structs.replace(run.broker, url=_public(run.broker.url)))
    return tomli_w.dumps(msgspec.to_builtins(run))


def resumed(saved: RunFile, given: RunFile) -> RunFile:
    """The run file to go on with: seed, method, model and fleet stay the run's own; where the broker is, how rounds
    are closed, how the model is evaluated and how many rounds there are may be given anew."""
    method = dict(saved.method)
    length = length_of(_kind_of(saved, "run file"))
    if length in given.method:
        method[length] = given.method[length]
    return msgspec.structs.replace(
        saved, broker=given.broker, round=given.round, evaluate=given.evaluate, runs=given.runs, method=method
    )


def _public(url: str) -> str:
    """An address without user and password."""
    scheme, found, rest = url.partition("://")
    return scheme + found + rest.rpartition("@")[2]


def _check_devices(run: RunFile, where: str) -> None:
    wanted = {"[round] min_devices": run.round.min_devices, "[fleet] devices": run.fleet.devices if run.fleet else 0}
    for key, devices in wanted.items():
        if devices > run.round.max_devices:
            raise ConfigError(
                f"{where}: {key} is {devices}, but the run takes at most {run.round.max_devices} devices",
                hint=f"set max_devices = {devices} in [round]",
            )


def _check_bundles(bundles: tuple[BundleSection, ...], where: str) -> None:
    names = [one.class_name for one in bundles]
    if not names:
        raise ConfigError(f"{where}: there is no [[bundle]]")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{where}: two [[bundle]] are called {twice[0]!r}", hint="give each its own `name`")
    for one, name in zip(bundles, names, strict=True):
        _check_source(one, f"{where}: [[bundle]] {name!r}")
        if one.condition:
            try:
                parse_condition(one.condition)
            except ConfigError as error:
                raise ConfigError(f"{where}: [[bundle]] {name!r}: {error.message}", hint=error.hint) from error


def _check_source(section: ModelSection, where: str) -> None:
    if (section.path is None) == (section.model is None) or "" in (section.path, section.model):
        raise ConfigError(f"{where}: give either `path` or `model`")
    if section.options and section.path is not None:
        raise ConfigError(f"{where}: options are for making a bundle of a `model`")


def _check_student(run: RunFile, where: str) -> None:
    name = str(run.method.get("name", DEFAULT))
    wanted = STUDENT in _kind_of(run, where).__struct_fields__
    if wanted and run.student is None:
        raise ConfigError(
            f"{where}: {name} has a student, a model that learns on the aggregator",
            hint='add [student] with model = "zoo:NAME", and the options of [[bundle]]',
        )
    if not wanted and run.student is not None:
        raise ConfigError(f"{where}: [student]: {name} has none", hint="remove the section")
    if run.student is not None:
        _check_source(run.student, f"{where}: [student]")


def _check_keys(raw: Mapping[str, Any], kind: type[Any], where: str, section: str) -> None:
    """Raise ConfigError for a key that its section has not. Options of an export are checked when they are used."""
    known = kind.__struct_encode_fields__
    for key, value in raw.items():
        if key not in known:
            place = f" in [{section}]" if section else ""
            raise ConfigError(
                f"{where}: unknown key {key!r}{place}",
                hint=nearest(key, sorted(known)),
            )
        inside = f"{section}.{key}" if section else key
        if inside in _SECTIONS:
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict):
                    _check_keys(part, _SECTIONS[inside], where, inside)


def _check_values(raw: Any, where: str, place: str, depth: int = 0) -> None:
    """Raise ConfigError for a value that nothing here can be: inf and nan are TOML, but not JSON, which is the wire;
    whole numbers beyond 64 bits are of neither; a NUL ends a path."""
    if depth > MAX_DEPTH:
        raise ConfigError(f"{where}: {place[:50]}... is nested too deep")
    for key, value in raw.items() if isinstance(raw, dict) else enumerate(raw):
        if isinstance(value, (dict, list)):
            _check_values(value, where, f"{place}{key}.", depth + 1)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}: {place}{key} is {value}; expected a finite number")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError(f"{where}: {place}{key} is beyond 64 bits; expected a smaller number")
        elif isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{where}: {place}{key} is {value!r}; expected a text without NUL")


_SECTIONS: dict[str, type[Any]] = {
    "broker": BrokerSection,
    "round": RoundSettings,
    "evaluate": EvaluateSection,
    "fleet": FleetSection,
    "bundle": BundleSection,
    "student": ModelSection,
    "fleet.profile": ProfileSection,
}


def _readable(error: Exception) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.round.quorum`" with the place first."""
    what, _, place = str(error).partition(" - at ")
    return f"{place.strip('`$.')}: {what}" if place else what


def _beside(base: Path, path: str) -> str:
    """`path` as seen from the run file's folder. A named data set ("digits") is no path."""
    return path if path == "digits" else str((base / path).resolve()) if not Path(path).is_absolute() else path


def _bundles_beside(base: Path, bundle: str | tuple[BundleSection, ...] | None) -> Any:
    if not isinstance(bundle, tuple):
        return _beside(base, bundle) if bundle else None
    return tuple(_source_beside(base, one) for one in bundle)


def _source_beside(base: Path, section: _Source) -> _Source:
    return msgspec.structs.replace(
        section,
        path=_beside(base, section.path) if section.path else None,
        model=_model_beside(base, section.model),
        options={
            k: _model_beside(base, v) if k in SOURCES and ":" in str(v) else v for k, v in section.options.items()
        },
    )


def _model_beside(base: Path, model: str | None) -> str | None:
    return _beside(base, model) if model and not model.startswith("zoo:") else model


def bundle_name(model: str) -> str:
    """What a bundle is called: OBJECT, or the file's name where OBJECT says nothing ("model")."""
    file, _, name = model.rpartition(":")
    return Path(file).stem if name == "model" else name
