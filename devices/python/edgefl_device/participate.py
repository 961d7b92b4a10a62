"""A device process: takes part in a run, or goes from run to run for ever."""

from __future__ import annotations

import time

from edgefl.errors import BrokerError, ConfigError, EdgeflError, NameTaken
from edgefl.files import locked, make_private
from edgefl.memory import keep_freed
from edgefl.patience import Pauses, Rarely
from edgefl_device.engines.engine import name_of
from edgefl_device.find import find_run
from edgefl_device.options import Options, Say
from edgefl_device.taking_part import TakingPart
from edgefl_device.work.state_folder import Runs, sweep_state

LEAVING_S = 3.0  # an emulated device whose run was killed notices within a second; the next may start meanwhile


def participate(options: Options, log: Say) -> None:
    """Take part in one run until it is finished; for ever, where the options say so.

    Raises InputError (the engine is not installed), BrokerError, BundleError (the run's bundle cannot be used),
    DataError (the data does not fit it), ConfigError; KeyboardInterrupt leaves cleanly. For ever, what another run or
    waiting may mend is said instead.
    """
    name_of(options.engine)
    # What glibc keeps by default cost, for a model of 6.7 MB, 14 MB at the peak and 40 MB after it
    # (bench/device_memory.py); to keep nothing made a dream step twice the work (bench/dream_floor.py).
    keep_freed(block_bytes=2**20, all_bytes=4 * 2**20)
    busy = ConfigError(
        f"another device process uses {options.state}", hint="give every device its own --name, or its own --state"
    )
    make_private(options.state)
    with locked(options.state / "lock", busy, patience_s=LEAVING_S):
        sweep_state(options.state)
        _from_run_to_run(options, log)


def _from_run_to_run(options: Options, log: Say) -> None:
    dead: set[str] = set()  # what a broker has kept of their aggregators counts no more
    unfit: set[str] = set()
    pauses, rarely = Pauses(), Rarely(log)
    while True:
        if swept := Runs(options.state).sweep(options.keep):
            log(f"removed what finished runs have left here: {', '.join(swept)} (--keep {options.keep})")
        try:
            run = options.run or find_run(options, log, dead=dead, unfit=unfit)
            if _take_part(options, run, log, unfit) and (options.run or not options.forever):
                return
            dead.add(run)
            pauses.begin_again()
        except NameTaken:
            raise  # to come back would throw the other out
        except BrokerError as error:
            if not options.forever:
                raise
            rarely(f"{error.message}: trying again" + (f" ({error.hint})" if error.hint else ""))
            time.sleep(pauses.next_s())


def _take_part(options: Options, run: str, log: Say, unfit: set[str]) -> bool:
    """Whether the run is over for this device; a run that it does not suit is noted, and said."""
    part = TakingPart(options, run, log)
    try:
        return part.until_over()
    except EdgeflError as error:
        if error is not part.unfit or options.run or not options.forever:
            raise
        unfit.add(run)
        log(f"run {run}: {part.unfit.message}; waiting for another run")
        return False
