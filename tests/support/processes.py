"""edgefl commands as processes, for tests that start what a person would start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Bundles that a command has made before, of the same sources; see `edgefl_exporter.cache`.
MADE_BEFORE = Path(__file__).parents[2] / ".pytest_cache" / "edgefl"
LONGEST_S = 240.0  # that a line is waited for, also on a machine with much else to do
DEVICES = ["pi-1", "pi-2", "pi-3"]


class Process:
    """An edgefl command that is running; its stderr is read line by line."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        python: Path | str = sys.executable,
        entry: Sequence[str] = ("-m", "edgefl"),
    ) -> None:
        """`python`: the interpreter of the environment whose edgefl is meant; `entry`: how it is begun."""
        self.child = subprocess.Popen(
            [python, *entry, *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "HOME": str(folder), "COLUMNS": "200", "EDGEFL_CACHE": str(MADE_BEFORE)},
        )
        self.lines: list[str] = []

    def wait_for(self, wanted: Callable[[str], bool]) -> str:
        """Read stderr up to the first wanted line. Fails when the command ends before, as it does after LONGEST_S."""
        assert self.child.stderr is not None
        patience = threading.Timer(LONGEST_S, self.child.kill)
        patience.start()
        try:
            for line in self.child.stderr:
                self.lines.append(line.rstrip())
                if wanted(line):
                    return line
        finally:
            patience.cancel()
        raise AssertionError("ended without the wanted line:\n" + "\n".join(self.lines))

    def wait_for_round(self, number: int) -> None:
        """Until the table shows a round."""
        self.wait_for(lambda line: line.split()[:1] == [str(number)])

    def kill(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        self.child.wait(20)

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout, all of stderr."""
        out, err = self.child.communicate(timeout=90)
        return self.child.returncode, out, "\n".join(self.lines) + "\n" + err


def json_of(out: str) -> dict[str, Any]:
    """The last line of a command's stdout."""
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found
