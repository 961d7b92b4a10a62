"""A fleet of emulated devices on this machine: each a process of its own that speaks MQTT."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType

from edgefl.errors import EdgeflError

GRACE_S = 5.0  # for a device to leave by itself before it is killed


class Fleet:
    """Device processes, ended when the block ends."""

    def __init__(
        self,
        url: str,
        run: str,
        data: Mapping[str, Path],
        directory: Path,
        *,
        options: Mapping[str, Sequence[str]] = MappingProxyType({}),
        threads: int = 1,
        tls: Mapping[str, str] | None = None,
    ) -> None:
        """`data`: device name -> its data; `options`: more words of its command; `tls`: "ca", "cert", "key" -> file.
        Logs and device state go into `directory`."""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._directory = directory
        self._url = url
        files = [word for name, path in (tls or {}).items() for word in (f"--{name}", path)]
        directory.mkdir(parents=True, exist_ok=True)
        try:
            for name, path in data.items():
                words = ["--run", run, "--data", str(path), "--threads", str(threads), *files]
                self._start(name, [*words, *options.get(name, ())])
        except BaseException:
            self.stop()
            raise

    def _start(self, name: str, options: Sequence[str]) -> None:
        state = self._directory / name
        command = [sys.executable, "-m", "edgefl", "device", "--name", name, "--state", str(state)]
        with open(self._directory / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                [*command, *options, "--once", "--parent", str(os.getpid())],
                env={**os.environ, "EDGEFL_BROKER": self._url},  # not an argument: it may hold a password
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is the aggregator's: it closes the round first
            )

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._processes.items()}

    def check(self) -> None:
        """Raises EdgeflError with the device's own words when one has failed."""
        for name, process in self._processes.items():
            if process.poll() not in (None, 0):
                log = (self._directory / f"{name}.log").read_text(errors="replace").strip().splitlines()
                said = next((line for line in reversed(log) if line.startswith("error: ")), "")
                code = process.returncode
                how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
                raise EdgeflError(
                    f"{name} {how}" + (f": {said.removeprefix('error: ')}" if said else ""),
                    hint=f"its log is {self._directory / f'{name}.log'}",
                )

    def stop(self) -> None:
        """End every device: politely, then not."""
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self._processes.values():
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def wait(self, timeout_s: float) -> None:
        """Let the devices leave by themselves at the end of a run."""
        for process in self._processes.values():
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
