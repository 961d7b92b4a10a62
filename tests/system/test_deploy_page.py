"""docs/deploy.md and docker/: what is written there is run, as far as this goes without a Pi and without docker."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edgefl.cli import main
from edgefl.service import STOPPED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text()
DOCKER_FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
EDGEFL = "/opt/edgefl/bin/edgefl"
STARTS = {"sudo", "ssh", "mkdir", "cd", "tee", "scp", "read", "rm", "systemctl", "journalctl", "docker", EDGEFL}


@pytest.fixture(autouse=True)
def broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the page has the broker's address: not on a command line, which everybody on a machine can read."""
    monkeypatch.setenv("EDGEFL_BROKER", "mqtt://laptop.local")


def blocks(heading: str = "") -> list[str]:
    """The indented blocks of the page, or of a section of it."""
    text = PAGE if not heading else PAGE.split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found]


def is_script(block: str) -> bool:
    return block.split()[0] in STARTS


def scripts(heading: str = "") -> str:
    """What a person types."""
    return "".join(block for block in blocks(heading) if is_script(block))


def edgefl_commands(text: str) -> list[list[str]]:
    """The words after `edgefl` of each command."""
    return [shlex.split(line.split(EDGEFL, 1)[1]) for line in text.splitlines() if f"{EDGEFL} " in line]


def check(words: list[str]) -> None:
    """Raises click's UsageError for a command or an option that there is not."""
    command = main.get_command(click.Context(main), words[0])  # type: ignore[attr-defined]
    assert command is not None, words
    command.make_context(words[0], words[1:])


def test_every_command_is_one_that_there_is() -> None:
    commands = [words for words in edgefl_commands(scripts()) if words != ["--version"]]
    assert [words[0] for words in commands] == ["export", "split", "device", "aggregate"]
    for words in commands:
        check(words)
    with pytest.raises(click.UsageError):
        check([*commands[2], "--nonsense"])


def test_the_shell_reads_every_line() -> None:
    subprocess.run(["bash", "-n"], input=scripts(), text=True, check=True)


def test_what_pip_is_asked_for_is_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = PAGE + "".join(path.read_text() for path in DOCKER_FILES)
    asked = re.findall(r"(?:edgefl|/source)\[([\w,]+)\]", text)
    assert len(asked) >= 4
    assert {extra for names in asked for extra in names.split(",")} <= extras.keys()


# --- two devices and a laptop -------------------------------------------------------------------------------------


class Machine:
    """What the page makes, below one folder, and services: commands as their units have them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journals: dict[str, list[str]] = {}
        self._running: dict[str, subprocess.Popen[str]] = {}
        edgefl = folder / "edgefl"
        edgefl.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m edgefl "$@"\n')
        edgefl.chmod(0o755)

    def type(self, text: str) -> str:
        """Run what a person would type, where there are no packages, no systemd and no second machine."""
        apart = r"sudo (apt-get|python3|chown|systemctl|/opt/edgefl/bin/pip)|systemctl|journalctl|scp|read|rm"
        apart += "|.*edgefl export"
        lines = [line for line in text.splitlines() if not re.match(apart, line)]
        text = "\n".join(lines).replace("$SECRET", "lab-secret").replace("install -D -o edgefl", "install -D")
        for place in ("/etc/mosquitto", "/var/lib/edgefl"):
            (self.folder / place[1:] / "conf.d").mkdir(parents=True, exist_ok=True)
            text = text.replace(place, f"{self.folder}{place}")
        text = text.replace(EDGEFL, str(self.folder / "edgefl")).replace("mkdir lab", "mkdir -p lab")
        script = f'set -e\nsudo() {{ env "$@"; }}\n{text}'
        done = subprocess.run(["bash"], input=script, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, name: str, command: list[str], broker: str = "") -> None:
        environment = {**os.environ, "EDGEFL_BROKER": broker}
        self.journals.setdefault(name, [])
        self._running[name] = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder / "lab",
            env=environment,
        )

    def wait_for(self, name: str, pattern: str) -> None:
        """Until a service says it."""
        said = self._running[name].stdout
        assert said is not None
        for line in said:
            self.journals[name].append(line)
            if re.search(pattern, line):
                return
        raise AssertionError("".join(self.journals[name]))

    def end(self, name: str, number: int | None = None) -> int:
        """How a service ends, by itself or by a signal."""
        process = self._running.pop(name)
        if number is not None:
            process.send_signal(number)
        out, _ = process.communicate(timeout=60)
        self.journals[name] += out.splitlines(keepends=True)
        return process.returncode

    def stop(self) -> None:
        for name in list(self._running):
            self.end(name, signal.SIGKILL)


@pytest.fixture
def machine(tmp_path: Path, digits_bundle: Path) -> Iterator[Machine]:
    for program in ("mosquitto", "mosquitto_passwd"):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            pytest.skip(f"{program} is not installed (apt install mosquitto)")
    machine = Machine(tmp_path)
    shutil.copytree(digits_bundle, tmp_path / "lab" / "digits.bundle")
    yield machine
    machine.stop()


def listening(machine: Machine) -> int:
    """The page's broker, at a free port."""
    config = machine.folder / "etc/mosquitto/conf.d/edgefl.conf"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    text = config.read_text()
    assert "listener 1883\n" in text and "allow_anonymous false\n" in text
    # The last two: so that root does not become a user without our files, and so that we hear of it.
    config.write_text(text.replace("listener 1883", f"listener {port} 127.0.0.1") + "user root\nlog_dest stderr\n")
    path = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    machine.start("broker", [str(path), "-v", "-c", str(config)])
    machine.wait_for("broker", "running$")
    return port


def test_two_devices_and_a_run_come_back_from_a_power_cut(machine: Machine) -> None:
    machine.type(scripts("3. The laptop: broker, model, data").replace("rounds = 2000", "rounds = 8"))
    broker = f"mqtt://fleet:lab-secret@127.0.0.1:{listening(machine)}"
    shutil.copy(machine.folder / "lab" / "parts" / "pi-1.npz", machine.folder)
    shutil.copy(machine.folder / "lab" / "parts" / "pi-2.npz", machine.folder)
    device = scripts("4. The devices").replace("--install\n", "--install --print\n")
    run = f"cd lab\n{scripts('5. The run')}".replace("--install\n", "--install --print\n")
    state = f"{machine.folder}/state/"
    commands = {
        name: [
            word.replace("/var/lib/edgefl/pi-", f"{state}pi-", 1) if word.startswith("/var/lib") else word
            for word in started(shown)
        ]
        for name, shown in (
            ("pi-1", machine.type(device)),
            ("pi-2", machine.type(device.replace("pi-1", "pi-2"))),
            ("lab", machine.type(run)),
        )
    }
    for name, command in commands.items():
        machine.start(name, command, broker)
        if name != "lab":
            machine.wait_for(name, "waiting for an aggregator")
    machine.wait_for("lab", r"^ +2 ")
    for name in ("pi-1", "lab"):
        assert machine.end(name, signal.SIGKILL) == -signal.SIGKILL
    machine.start("lab", commands["lab"], broker)  # as systemd does
    machine.start("pi-1", commands["pi-1"], broker)
    assert machine.end("lab") == 0, machine.journals["lab"]
    for name in ("pi-1", "pi-2"):
        machine.wait_for(name, "the run is finished")
        assert machine.end(name, signal.SIGTERM) == STOPPED
    (records,) = (machine.folder / "lab" / "runs").glob("*/metrics.jsonl")
    assert [json.loads(line)["round"] for line in records.read_text().splitlines()] == list(range(1, 9))
    said = {likeness(line) for journal in machine.journals.values() for line in journal}
    shown = [
        line
        for n in ("4. The devices", "5. The run", "6. Pull the plugs")
        for block in blocks(n)
        if not is_script(block)
        for line in block.splitlines()
    ]
    assert len(shown) > 9
    assert [line for line in shown if likeness(line) not in said and "edgefl-pi-1" not in line] == []


def started(shown: str) -> list[str]:
    """The command of a unit."""
    (line,) = re.findall(r"^ExecStart=(.*)$", shown, re.MULTILINE)
    return shlex.split(line)


def likeness(line: str) -> str:
    """A line without what differs from day to day."""
    line = re.sub(r"mqtt://[\w.:]+", "mqtt://HOST", re.sub(r"lab-\d{8}-\d{6}", "lab-RUN", line))
    return " ".join(re.sub(r"[\d.]+", "0", line).split())


# --- containers ---------------------------------------------------------------------------------------------------


def docker_words() -> list[list[str]]:
    """The `docker run` commands of the page."""
    return [shlex.split(line) for line in scripts().splitlines() if line.startswith("docker run")]


@pytest.mark.parametrize("path", DOCKER_FILES, ids=lambda path: path.stem)
def test_a_container_runs_edgefl_itself_and_not_as_root(path: Path) -> None:
    """In exec form: a shell before it would keep SIGTERM to itself."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    stages = "\n".join(lines).split("FROM ")[1:]
    assert len(stages) == 2 and "pip" not in stages[1]  # what was needed to install it stays behind
    last = dict(line.split(" ", 1) for line in stages[1].splitlines()[1:])
    assert last["USER"] == "edgefl" and last["STOPSIGNAL"] == "SIGTERM"
    program, *entry = json.loads(last["ENTRYPOINT"])
    assert program == EDGEFL and f"python -m venv {EDGEFL.rpartition('/bin/')[0]}" in stages[0]
    image = f"edgefl-{path.stem}"
    (words,) = [words for words in docker_words() if image in words]
    check([*entry, *words[words.index(image) + 1 :]])
    volume = last["VOLUME"]
    assert f":{volume}" in " ".join(words) and f"install -d -o edgefl -m 700 {volume}" in stages[1]
    assert last.get("WORKDIR", volume) == volume and f"-f docker/{path.name}" in scripts()


def test_what_is_not_needed_stays_out_of_an_image() -> None:
    """.dockerignore lets in what the wheel is made of, and nothing else."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    first, *rules = (ROOT / ".dockerignore").read_text().split()
    let_in = [rule[1:] for rule in rules if rule.startswith("!")]
    assert first == "*" and {"pyproject.toml", "README.md", "LICENSE"} <= set(let_in)
    for source in wheel["packages"]:
        assert any(source == path or source.startswith(f"{path}/") for path in let_in), source
    assert not {"tests", "runs", ".venv", ".git"} & set(let_in)
