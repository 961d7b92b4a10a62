"""Reading a run file (TOML). An unknown key or a wrong value is an error that names the nearest key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import tomli_w

from edgefl.aggregator.chosen import name_of
from edgefl.aggregator.classes import parse_condition
from edgefl.aggregator.fusion import fusion_of
from edgefl.aggregator.settings import RoundSettings
from edgefl.aggregator.weights import LEARNED, rule_of
from edgefl.errors import ConfigError, nearest
from edgefl.files import read_bytes
from edgefl.method import Method
from edgefl.methods import DEFAULT, method_named
from edgefl.own_code import own
from edgefl.runs.sections import (
    BrokerSection,
    BundleSection,
    EvaluateSection,
    FleetSection,
    ModelSection,
    ProfileSection,
    RunFile,
)

STUDENT = "student"  # the field of a method that has one
# Keys of [method] that may name FILE.py:NAME -> what a copy is called in the run directory.
OWN_CODE = {"name": "method.py", "fusion": "fusion.py", "weight": "weights.py"}
SOURCES = ("small", "local", "loss", "method")  # options of `edgefl export` that may name FILE:OBJECT
MAX_RUN_FILE_BYTES = 2**20
MAX_DEPTH = 10  # tables and lists in each other


_Source = TypeVar("_Source", bound="ModelSection")


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
    if run.round.below_quorum != "wait" and not run.round.patience_s:
        raise ConfigError(
            f"{where}: [round] below_quorum is {run.round.below_quorum!r}, but patience_s is 0: the run waits for ever",
            hint="set patience_s = 600 in [round]",
        )
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
    kind = kind_of(run, where)
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


def kind_of(run: RunFile, where: str) -> type[Any]:
    """The class of the run's method. Raises ConfigError for a name that is none."""
    try:
        return method_named(run.method.get("name", DEFAULT))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from error


def to_toml(run: RunFile) -> str:
    """The run file as text again, with paths resolved. Without the broker's password: run directories are shared."""
    if run.broker.url is not None:
        run = msgspec.structs.replace(run, broker=msgspec.structs.replace(run.broker, url=_public(run.broker.url)))
    return tomli_w.dumps(msgspec.to_builtins(run))


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
    if own_code_of(run.method, "name"):  # is looked at when the run is prepared
        wanted = run.student is not None
    else:
        wanted = STUDENT in kind_of(run, where).__struct_fields__
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
        options={k: _option_beside(base, k, v) for k, v in section.options.items()},
    )


def _option_beside(base: Path, name: str, value: Any) -> Any:
    """An option of an export, with a path in it as seen from the run file's folder."""
    if name in SOURCES and ":" in str(value):
        return _model_beside(base, value)
    if name == "data" or (name == "classes" and isinstance(value, str) and (base / value).is_file()):
        return _beside(base, str(value))
    return value


def _model_beside(base: Path, model: str | None) -> str | None:
    return _beside(base, model) if model and not model.startswith("zoo:") else model
