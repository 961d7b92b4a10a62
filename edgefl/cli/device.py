"""The command that is a device."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgefl.cli.install import check_print, install_options, install_or_print, words
from edgefl.cli.stream import JsonLines, each
from edgefl.cli.teller import Teller, tells
from edgefl.cli.ticker import Ticker
from edgefl.cli.tls import tls_options
from edgefl.errors import ConfigError
from edgefl.manifest import PORTABLE
from edgefl.service import STATE, Service, edgefl_command
from edgefl.training_artifacts import ENGINE

if TYPE_CHECKING:
    from edgefl.address import Tls


@click.command()
@click.option(
    "--broker",
    "url",
    required=True,
    envvar="EDGEFL_BROKER",
    help="mqtt://HOST:PORT, or mqtts:// with --ca --cert --key.",
)
@click.option("--name", required=True, help="Name of this device: a-z 0-9 _ -, at most 36.")
@click.option(
    "--data",
    required=True,
    help="Its own data: .npz, .csv, .parquet, IDX files, a folder of images or WAV files per class; see docs/data.md.",
)
@click.option("--label", metavar="NAME", help="Name of the label's column, where the data are a table.")
@click.option("--as-is", is_flag=True, help="Use data far outside the range that the bundle was made for.")
@click.option("--no-label-counts", is_flag=True, help="Do not say how many examples of each class there are.")
@click.option("--run", help="Run to take part in; default: the one that is up.")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    envvar="EDGEFL_STATE",
    help="Folder for what must survive a restart; default: ~/.edgefl/NAME.",
)
@click.option(
    "--keep",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Finished runs of which bundle, journal and model stay in --state.",
)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--engine",
    type=click.Choice([PORTABLE, ENGINE]),
    default=PORTABLE,
    show_default=True,
    help="What trains; the other one needs a bundle exported for it, and its own environment.",
)
@click.option("--memory-mb", type=click.IntRange(1), help="Memory to state; default: what is here. Decides the bundle.")
@click.option("--cores", type=click.IntRange(1), help="Cores to state; default: what is here.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="This device's own setting of a program, such as max_steps=4: counts more than what the aggregator says.",
)
@tls_options
@click.option("--forever", is_flag=True, help="Go from run to run; wait for whatever waiting may mend.")
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(1),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Leave a run whose aggregator is silent for so long, when another is up.",
)
@click.option("--once", is_flag=True, help="Fail where no broker is there, instead of waiting for it.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "jsonl"]),
    default="text",
    help="jsonl: a line on stdout for each thing that happens.",
)
@install_options
@click.option("--parent", type=int, hidden=True, help="End when this process is no longer our parent.")
@tells
def device(
    url: str,
    name: str,
    data: str,
    label: str | None,
    as_is: bool,
    no_label_counts: bool,
    run: str | None,
    state: Path | None,
    keep: int,
    threads: int,
    engine: str,
    memory_mb: int | None,
    cores: int | None,
    settings: tuple[str, ...],
    tls: Tls,
    forever: bool,
    patience_s: float,
    once: bool,
    form: str,
    install: bool,
    printed: bool,
    parent: int | None,
    teller: Teller,
) -> None:
    """Be a device: download the bundle, train on your own data, send updates, until the run is finished.

    \b
    Example:
      edgefl device --broker mqtt://127.0.0.1:1883 --name pi-1 --data parts/pi-1.npz --forever
    """
    check_print(install, printed)
    if install:
        given = [path for path in (tls.ca, tls.cert, tls.key) if path is not None]
        service = _service(url, name, run, data, label, state, given)
        install_or_print(service, printed=printed, tell=teller.tell)
        return
    from edgefl_device.device import device as take_part

    ticker = Ticker(teller)
    stream = JsonLines() if form == "jsonl" else None
    place = state or Path.home() / ".edgefl" / name
    try:
        take_part(
            url,
            name,
            data,
            label=label,
            run=run,
            forever=forever,
            patience_s=patience_s,
            once=once,
            state=place,
            keep=keep,
            threads=threads,
            engine=engine,
            memory_mb=memory_mb,
            cores=cores,
            settings=dict(_setting(text) for text in settings),
            as_is=as_is,
            label_counts=not no_label_counts,
            tls=tls,
            parent=parent,
            progress=each([ticker.tell, stream.progress] if stream else [ticker.tell]),
            on_progress=each([ticker.progress, stream.how_far] if stream else [ticker.progress]),
        )
    except KeyboardInterrupt:
        ticker.tell(f"left; {place} keeps what is needed to come back")
        if stream:
            stream.left()
        raise SystemExit(130) from None
    except Exception as error:
        if stream:
            stream.error(error)
        raise
    finally:
        ticker.clear()


def _service(
    url: str, name: str, run: str | None, data: str, label: str | None, state: Path | None, files: list[Path]
) -> Service:
    """This command as a service: for ever, and with a state folder of its own. What would fail at once is refused."""
    from edgefl.address import Address
    from edgefl_device.device import check_names
    from edgefl_device.sources import read_splits

    Address.parse(url)
    check_names(name, run)
    read_splits(data, label=label)
    given = words(click.get_current_context(), leave_out=("url", "forever", "state", "log"), paths=("data",))
    place = STATE / name if state is None else state.resolve()
    return Service(
        name=f"edgefl-{name}",
        about=f"edgefl device {name}",
        command=(edgefl_command(), "device", *given, "--forever", "--state", str(place)),
        environment={"EDGEFL_BROKER": url},
        reads=[path.resolve() for path in (Path(data), *files) if path.exists()],
        state=f"{STATE.name}/{name}" if state is None else None,
        folder=None if state is None else place,
    )


def _setting(text: str) -> tuple[str, float]:
    """ "max_steps=4" -> ("max_steps", 4.0). Raises ConfigError."""
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name.isidentifier() or not math.isfinite(number):
        raise ConfigError(f"--set {text!r} is not NAME=NUMBER", hint="for example --set max_steps=4")
    return name, number
