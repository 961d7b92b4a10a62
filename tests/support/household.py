"""A broker, an aggregator and two devices in one house, under a supervisor: all of them begin, and lose their power, at
once."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import unsynced

from edgefl_broker.engines import find_program

DEVICES = ("pi-1", "pi-2")
MOSQUITTO = """
listener {port} 127.0.0.1
allow_anonymous true
user root
persistence true
persistence_location {folder}/
autosave_on_changes true
autosave_interval 1
"""


class Household:
    """Processes of one folder. `lines` are what the aggregator has said, over all its lives."""

    def __init__(self, folder: Path, run_file: str, *, keeps_unsynced: bool) -> None:
        """`folder` holds DEVICE.npz; `keeps_unsynced`: what was written before a cut is on the disk, synced or not."""
        self.folder = folder
        self.lines: list[str] = []
        self._keeps_unsynced = keeps_unsynced
        self._shadow = unsynced.Shadow(folder / "shadow")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._url = f"mqtt://127.0.0.1:{server.getsockname()[1]}"
        for name in ("broker", "runs", *DEVICES):
            (folder / name).mkdir()
        (folder / "run.toml").write_text(run_file)
        port = int(self._url.rpartition(":")[2])
        (folder / "mosquitto.conf").write_text(MOSQUITTO.format(port=port, folder=folder / "broker"))

    def start(self, order: Sequence[str]) -> None:
        """Start "broker", "aggregator" and the devices, one right after the other."""
        for name in order:
            with open(self.folder / f"{name}.log", "ab") as log:
                out = subprocess.PIPE if name == "aggregator" else log
                self._processes[name] = subprocess.Popen(
                    self._command(name), cwd=self.folder, stdout=log, stderr=out, env=_environment()
                )
        # A queue of its own for each life: the last words of the one before are not this one's.
        self._said = queue.SimpleQueue()
        self._reading = threading.Thread(target=self._read, args=(self._processes["aggregator"], self._said))
        self._reading.start()

    def _command(self, name: str) -> list[str]:
        if name == "broker":
            program = find_program("mosquitto")
            assert program is not None
            return [program, "-c", "mosquitto.conf"]
        edgefl = [sys.executable, "-m", "edgefl"]
        if not self._keeps_unsynced:
            edgefl = [sys.executable, unsynced.__file__, "shadow"]
        if name == "aggregator":
            return [*edgefl, "aggregate", "run.toml", "--broker", self._url, "--resume", "auto"]
        options = ["--broker", self._url, "--name", name, "--data", f"{name}.npz", "--state", name]
        return [*edgefl, "device", *options, "--forever"]

    def _read(self, process: subprocess.Popen[bytes], said: queue.SimpleQueue[str | None]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.lines.append(line.decode().rstrip())
            said.put(self.lines[-1])
        process.stderr.close()
        said.put(None)

    def wait_for_round(self, number: int, most_s: float) -> None:
        """Until the aggregator has said that it is done, or the time is over."""
        end_s = time.monotonic() + most_s
        with contextlib.suppress(queue.Empty):
            while self.rounds_said() < number:
                if self._said.get(timeout=max(0.0, end_s - time.monotonic())) is None:
                    return

    def rounds_said(self) -> int:
        """The last round that the aggregator said to be done, in whatever life."""
        words = (line.split()[:1] for line in self.lines)
        return max((int(word[0]) for word in words if word and word[0].isdigit()), default=0)

    def rounds_on_disk(self) -> int:
        """How many whole lines its records have."""
        return max((path.read_bytes().count(b"\n") for path in self.folder.glob("runs/*/metrics.jsonl")), default=0)

    def cut(self, rng: random.Random) -> None:
        """The power is gone, for all of them at once."""
        ended = {name: code for name, process in self._processes.items() if (code := process.poll()) is not None}
        assert not ended, f"ended by themselves: {ended}\n{self.logs()}"
        for process in self._processes.values():
            process.kill()
        self.wait()
        if not self._keeps_unsynced:
            for name in ("runs", *DEVICES):
                self._shadow.after_power_cut(self.folder / name)
            self._cut_broker(rng)

    def _cut_broker(self, rng: random.Random) -> None:
        """We do not see what mosquitto syncs: its file is the one of this cut, of the one before, or gone."""
        file, before = self.folder / "broker" / "mosquitto.db", self.folder / "before.db"
        fate = rng.choice(["as it is", "as before", "gone"])
        if fate != "as it is":
            file.unlink(missing_ok=True)
        if fate == "as before" and before.exists():
            shutil.copy(before, file)
        if file.exists():
            shutil.copy(file, before)

    def wait(self) -> None:
        for process in self._processes.values():
            process.wait(60)
        if self._processes:
            self._reading.join(60)

    def end(self) -> None:
        """Whatever still runs."""
        for process in self._processes.values():
            process.kill()
        self.wait()

    def aggregator_code(self) -> int:
        """How the aggregator ended, once it has."""
        return self._processes["aggregator"].wait(120)

    def logs(self) -> str:
        """What everybody said last."""
        said = {name: (self.folder / f"{name}.log").read_text().splitlines()[-8:] for name in self._processes}
        said["aggregator"] = self.lines[-8:]
        return "\n".join(f"{name}: {line}" for name, lines in said.items() for line in lines)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"}
