"""The verb of a device: take part in a run with one's own data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from edgefl.address import Address, Tls
from edgefl.errors import ConfigError
from edgefl.manifest import PORTABLE
from edgefl.protocol import NAME
from edgefl_device.data import Splits
from edgefl_device.options import KEEP_RUNS, PATIENCE_S, Options
from edgefl_device.participate import participate
from edgefl_device.sources import read_splits


def device(
    broker: str,
    name: str,
    data: str | Path | Splits,
    *,
    label: str | None = None,
    run: str | None = None,
    forever: bool = False,
    patience_s: float = PATIENCE_S,
    once: bool = False,
    state: Path | None = None,
    threads: int = 1,
    engine: str = PORTABLE,
    memory_mb: int | None = None,
    cores: int | None = None,
    settings: Mapping[str, float] | None = None,
    as_is: bool = False,
    label_counts: bool = True,
    tls: Tls | None = None,
    keep: int = KEEP_RUNS,
    parent: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Be a device: download the bundle, train on one's own data, send updates, until the run is finished; or go from
    run to run for ever.

    broker      mqtt://HOST:PORT, or mqtts:// with `tls`
    name        of this device: a-z 0-9 _ -, at most 36
    data        a file or folder that `edgefl_device.sources.read_splits` reads, or what it has read
    label       the name of the label's column, where `data` is a table
    run         to take part in; None: the one that is up
    forever     go from run to run, and wait for whatever waiting may mend: a broker that refuses us, a run that does
                not suit us
    patience_s  leave a run whose aggregator is silent for so long, when another is up
    once        raise BrokerError where no broker is there, instead of waiting for it
    state       folder for what must survive a restart; None: ~/.edgefl/NAME
    engine      what trains; "onnxruntime-training" needs a bundle exported for it, and its own environment
    memory_mb, cores    to state instead of what is here
    settings    of programs, this device's own: they count more than what the aggregator says
    as_is       use data far outside the range that the bundle was made for; the aggregator is told
    label_counts    tell the aggregator how many training examples of each class there are; for people, not for training
    keep        how many finished runs stay in `state`: their bundles, journals and models
    parent      end when this process is no longer our parent
    progress    is told what happens, one line at a time
    on_progress is told several times a second how far training is, or what is on its way

    Raises ConfigError, DataError, InputError (the engine is not installed), BrokerError, BundleError; KeyboardInterrupt
    leaves cleanly, and `state` keeps what is needed to come back.
    """
    check_names(name, run)
    splits = data if isinstance(data, Splits) else read_splits(data, label=label)
    for note in splits.notes:
        progress(f"data: {note}")
    options = Options(
        broker=Address.parse(broker),
        name=name,
        data=splits,
        state=state or Path.home() / ".edgefl" / name,
        run=run,
        forever=forever,
        patience_s=patience_s,
        once=once,
        tls=tls,
        threads=threads,
        engine=engine,
        memory_mb=memory_mb,
        cores=cores,
        settings=dict(settings or {}),
        as_is=as_is,
        label_counts=label_counts,
        keep=keep,
        parent=parent,
        progress=on_progress,
    )
    participate(options, progress)


def check_names(name: str, run: str | None = None) -> None:
    """Raises ConfigError for the name of a device or a run that cannot be one."""
    for what, text in (("device name", name), ("run", run)):
        if text is not None and not re.fullmatch(NAME, text):
            raise ConfigError(f"{what} {text!r} cannot be used", hint="a-z, 0-9, _ and -, at most 36 characters")
