"""The report of a run, from its directory, and the page of all runs."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from edgefl.aggregator.fleet import Known
from edgefl.aggregator.record import Record
from edgefl.aggregator.store import read_classes, read_examples, read_fleet, read_records
from edgefl.bundle import Bundle, read
from edgefl.errors import ConfigError, EdgeflError
from edgefl.files import write_atomic
from edgefl.methods import DEFAULT, METHODS, paper_of
from edgefl.names import MAX_STEPS, TOLERANCE
from edgefl.results.confusion import read_confusion
from edgefl.results.events import Event, connected_at, is_finished, read_events
from edgefl.results.overview import INDEX, write_overview
from edgefl.results.report import ClassRow, Story, write_report
from edgefl.results.rounds import size
from edgefl.results.summary import SUMMARY, Summary, counted, read_summary, summary_of
from edgefl.runs.about import read_about
from edgefl.runs.parts import names_of
from edgefl.runs.run_file import read_run_file, to_toml
from edgefl.runs.sections import BundleSection, RunFile


def write_run_report(
    place: Path, config: RunFile, *, beside: Path | None = None, target: float | None = None
) -> Summary:
    """Write RUN_DIR/summary.json and report.html; what the run came to.

    `beside`: another run's directory; `target`: an accuracy, instead of the run file's.
    """
    events, records = read_events(place / "events.jsonl"), read_records(place / "metrics.jsonl")
    summary = _summary(place, config, events, records, target)
    write_atomic(place / SUMMARY, msgspec.json.encode(summary))
    held, bundles = read_classes(place), _bundles(place, config)
    story = Story(
        summary=summary,
        records=records,
        place=place,
        config=to_toml(config),
        paper=_method(config)[1],
        about=_about(place, config),
        classes=_classes(config, bundles, held),
        events=events,
        known=_known(place, held),
        settings=settings_of_devices(config, bundles, held),
        labels=next((bundle.manifest.data.class_names for bundle in bundles.values()), ()),
        confusion=read_confusion(place),
    )
    write_report(place / "report.html", story, beside=None if beside is None else _summary_of(beside, target))
    return summary


def report_again(
    run_dir: Path, *, beside: Path | None = None, target: float | None = None, progress: Callable[[str], None]
) -> tuple[Path, Summary | None]:
    """Write the report of a run directory again, or the page of all runs of a folder of them; where it is, and what the
    run came to.

    `beside`: another run's directory, whose curves are drawn over this one's. `target`: an accuracy, 0 to 1. Raises
    ConfigError for a directory without a finished round.
    """
    if beside is None and target is None and not (run_dir / "run.toml").exists() and any(run_dir.glob("*/run.json")):
        return _overview_again(run_dir, progress), None
    for place in filter(None, (run_dir, beside)):
        if not (place / "metrics.jsonl").exists():
            raise ConfigError(f"{place} holds no finished round of a run", hint="give a folder of runs/")
    summary = write_run_report(run_dir, read_run_file(run_dir / "run.toml"), beside=beside, target=target)
    write_overview(run_dir.resolve().parent, only_if_there=True)
    return run_dir / "report.html", summary


def _overview_again(runs: Path, progress: Callable[[str], None]) -> Path:
    """The page of all runs; the report of each that has rounds and no summary yet is written too."""
    for place in sorted(path.parent for path in runs.glob("*/metrics.jsonl")):
        if read_summary(place) is None and (place / "run.toml").exists():
            try:
                write_run_report(place, read_run_file(place / "run.toml"))
            except EdgeflError as error:  # one run that is damaged hides no other
                progress(f"no report: {error.message}")
    written = write_overview(runs)
    if written is None:
        raise ConfigError(f"{runs / INDEX} is no page of edgefl's", hint="move it elsewhere: it would be overwritten")
    return written


# --- what a report is made from -------------------------------------------------------------------------------------


def _summary_of(place: Path, target: float | None) -> Summary:
    events, records = read_events(place / "events.jsonl"), read_records(place / "metrics.jsonl")
    return _summary(place, read_run_file(place / "run.toml"), events, records, target)


def _summary(
    place: Path, config: RunFile, events: Sequence[Event], records: Sequence[Record], target: float | None
) -> Summary:
    about, connected = read_about(place), connected_at(events)
    if target is None and config.evaluate is not None:
        target = config.evaluate.target_accuracy
    return summary_of(
        records,
        name=place.name,
        method=_method(config)[0],
        model=_models(config.bundles),
        target=target,
        finished=is_finished(events),
        before_s=None if about is None or connected is None else connected - about.started,
    )


def _method(config: RunFile) -> tuple[str, str]:
    """What the method is called, and where it was published."""
    name = str(config.method.get("name", DEFAULT))
    if name in METHODS:
        return paper_of(METHODS[name])
    file, _, kind = name.rpartition(":")
    return (f"{Path(file).name}:{kind}", "") if file else (name, "")


def _models(sections: Sequence[BundleSection]) -> str:
    names = list(dict.fromkeys(_model(section) for section in sections))
    return " and ".join(names) if len(names) < 3 else f"{len(names)} different models"


def _model(section: BundleSection) -> str:
    given = section.model or section.class_name
    file, colon, name = given.rpartition(":")
    return f"{Path(file).name}{colon}{name}"


def _about(place: Path, config: RunFile) -> list[tuple[str, str]]:
    told = [("seed", str(config.seed))]
    if (about := read_about(place)) is not None:
        told += [
            ("started", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(about.started))),
            ("versions", ", ".join(f"{name} {version}" for name, version in about.versions.items())),
            ("system", about.platform),
            (
                "processor",
                f"{about.processor}, {counted(about.cores, 'core')}, {size(about.memory_mb * 2**20)} of memory",
            ),
        ]
    return told


def _known(place: Path, held: Mapping[str, str]) -> dict[str, Known]:
    """Of each device what devices.json says, else what it stated when it joined."""
    stated = {
        device: Known(examples=one.train or 0, test_examples=one.test or 0, name=held.get(device, ""))
        for device, one in read_examples(place).items()
    }
    return stated | read_fleet(place)


def _bundles(place: Path, config: RunFile) -> dict[str, Bundle]:
    """Those of the run's device classes that can be read: a run directory may be a copy without them."""
    found = {}
    for section in config.bundles:
        with contextlib.suppress(EdgeflError):
            found[section.class_name] = read(place / "bundles" / section.class_name)
    return found


def _classes(config: RunFile, bundles: Mapping[str, Bundle], held: Mapping[str, str]) -> list[ClassRow]:
    counts = Counter(held.values())
    return [
        ClassRow(
            name=section.class_name,
            condition=" and ".join(filter(None, (section.condition, ", ".join(section.devices)))),
            devices=counts[section.class_name],
            bundle_bytes=bundle.size_bytes,
            shared_bytes=sum(t.size_bytes for t in bundle.manifest.shared()),
        )
        for section in config.bundles
        if (bundle := bundles.get(section.class_name)) is not None
    ]


def settings_of_devices(
    config: RunFile, bundles: Mapping[str, Bundle], held: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """The settings by which devices differ, and the budget of a solve: of its bundle, the run, its class, its profile.

    What a device that is not emulated sets for itself nobody knows but the device.
    """
    profiles = config.fleet.profile if config.fleet is not None else ()
    emulated = names_of(config.fleet) if config.fleet is not None else []
    own = {name: profile.settings for name, profile in zip(emulated, itertools.cycle(profiles), strict=False)}
    sections = {section.class_name: section for section in config.bundles}
    found = {}
    for device, name in held.items():
        budget = _budget(bundles[name], config.method) if name in bundles else {}
        given = dict(sections[name].settings) if name in sections else {}
        if settings := budget | given | own.get(device, {}):
            found[device] = settings
    return found


def _budget(bundle: Bundle, method: Mapping[str, object]) -> dict[str, float]:
    inputs = {i.name: i.default for p in bundle.manifest.programs.values() for i in p.inputs if i.source == "setting"}
    asked = {key: method.get(key) for key in (MAX_STEPS, TOLERANCE)}
    found = {key: inputs[key] if asked[key] is None else asked[key] for key in asked if key in inputs}
    return {key: float(value) for key, value in found.items() if isinstance(value, (int, float))}
