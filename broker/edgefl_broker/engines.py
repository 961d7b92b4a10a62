"""The two brokers we can embed: how each is found, configured and started, and how its log says that it serves.

mosquitto is preferred: it starts in milliseconds, has users and needs the least memory. iotcore (rumqttd in a
wheel) is for machines where only pip works.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgefl.errors import BrokerError, ConfigError

EngineName = Literal["mosquitto", "iotcore"]

MAX_INFLIGHT = 200  # unacknowledged messages per client
MAX_QUEUED_BYTES = 256 * 2**20  # per client that reads slower than others write; past it messages are dropped
SEGMENT_BYTES, SEGMENTS = 8 * 2**20, 16  # of rumqttd's log per topic filter; smaller ones lose messages of slow readers

INSTALL_HINT = (
    "install mosquitto (`apt install mosquitto`, `dnf install mosquitto`, `brew install mosquitto`) "
    "or, into this Python, iotcore: `pip install 'edgefl[broker]'`"
)
# Debian and Homebrew keep the broker outside an ordinary user's PATH.
PROGRAM_DIRECTORIES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/usr/bin", "/usr/local/bin")


@dataclass(frozen=True)
class Wanted:
    """What a broker is asked to be. `port_311` is the MQTT 3.1.1 port of an engine that cannot share one."""

    host: str
    port: int
    port_311: int
    max_packet_bytes: int
    users: Mapping[str, str] | None


@dataclass(frozen=True)
class Engine:
    """A broker ready to be started.

    log_ready   each must be in the log before it serves: an accepted connection alone may be another
                program's, which took the port first
    holds_stdin the child ends when its standard input closes
    """

    name: EngineName
    command: tuple[str, ...]
    port_311: int
    log_ready: tuple[str, ...]
    holds_stdin: bool


def choose(engine: str, users: Mapping[str, str] | None) -> EngineName:
    """The engine to use. Raises BrokerError when it is not installed, ConfigError when it cannot do what is asked."""
    if engine not in ("auto", "mosquitto", "iotcore"):
        raise ConfigError(f"unknown broker engine {engine!r}; there are auto, mosquitto and iotcore")
    if engine != "iotcore" and find_program("mosquitto"):
        return "mosquitto"
    if engine == "mosquitto":
        raise BrokerError("no mosquitto on this machine", hint=INSTALL_HINT)
    if importlib.util.find_spec("iotcore") is None:
        missing = "no iotcore in this Python" if engine == "iotcore" else "no MQTT broker on this machine"
        raise BrokerError(missing, hint=INSTALL_HINT)
    if users:
        raise ConfigError("iotcore has no users", hint="use mosquitto, or leave `users` out")
    return "iotcore"


def configure(name: EngineName, wanted: Wanted, directory: Path) -> Engine:
    """Write the engine's configuration into `directory`."""
    return _mosquitto(wanted, directory) if name == "mosquitto" else _iotcore(wanted, directory)


def find_program(name: str) -> str | None:
    """The path of an installed program, also where PATH does not lead."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(PROGRAM_DIRECTORIES))


def _mosquitto(wanted: Wanted, directory: Path) -> Engine:
    lines = [
        f"listener {wanted.port} {wanted.host}",
        "set_tcp_nodelay true",  # a small round trip takes 88 ms without
        f"max_inflight_messages {MAX_INFLIGHT}",
        "max_queued_messages 0",  # the default of 1,000 acknowledges more, then drops them silently
        f"max_queued_bytes {MAX_QUEUED_BYTES}",
        f"max_packet_size {wanted.max_packet_bytes}",
        "persistence false",
        "log_dest stderr",
        *(f"log_type {kind}" for kind in ("error", "warning", "notice", "information")),
    ]
    if wanted.users:
        lines += ["allow_anonymous false", f"password_file {_password_file(wanted.users, directory)}"]
    else:
        lines += ["allow_anonymous true"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # It would become user `mosquitto`, who may not read our files; and Linux forgets the death signal then.
        lines += ["user root"]
    config = directory / "mosquitto.conf"
    config.write_text("\n".join(lines) + "\n")

    program = find_program("mosquitto")
    assert program is not None  # `choose` found it
    command: tuple[str, ...] = (program, "-c", str(config))
    if sys.platform == "linux":
        launcher = Path(__file__).with_name("launch.py")
        command = (sys.executable, "-I", "-S", str(launcher), str(os.getpid()), *command)
    return Engine(
        name="mosquitto",
        command=command,
        port_311=wanted.port,
        log_ready=(" running",),
        holds_stdin=False,
    )


def _password_file(users: Mapping[str, str], directory: Path) -> Path:
    program = find_program("mosquitto_passwd")
    if program is None:
        raise BrokerError("no mosquitto_passwd beside mosquitto: cannot make its users", hint=INSTALL_HINT)
    for user, password in users.items():
        # mosquitto_passwd -U reads NAME:PASSWORD lines and cuts the password at a colon; -b would show it to `ps`.
        if not user or not password or re.search(r"[:\r\n]", user + password):
            raise ConfigError(f"broker user {user!r}: name or password is empty, or has a colon or a line break")
    path = directory / "passwords"
    path.touch(mode=0o600)
    path.write_text("".join(f"{user}:{password}\n" for user, password in users.items()))
    done = subprocess.run([program, "-U", str(path)], capture_output=True, text=True)  # hashes them in place
    if done.returncode:
        raise BrokerError(f"mosquitto_passwd failed: {done.stderr.strip() or done.stdout.strip()}")
    return path


def _iotcore(wanted: Wanted, directory: Path) -> Engine:
    if wanted.host != "127.0.0.1":
        raise ConfigError(f"iotcore listens on 127.0.0.1 only, not on {wanted.host}", hint=INSTALL_HINT)
    config = directory / "iotcore.toml"
    config.write_text(
        f"""id = 0
[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = {MAX_INFLIGHT}
max_segment_size = {SEGMENT_BYTES}
max_segment_count = {SEGMENTS}
"""
        + _iotcore_listener("v5", wanted.port, wanted)
        + _iotcore_listener("v4", wanted.port_311, wanted)
    )
    return Engine(
        name="iotcore",
        command=(sys.executable, "-m", "edgefl_broker.iotcore_child", str(config)),
        port_311=wanted.port_311,
        log_ready=('connections config="v5"', 'connections config="v4"'),
        holds_stdin=True,
    )


def _iotcore_listener(version: str, port: int, wanted: Wanted) -> str:
    return f"""
[{version}.1]
name = "{version}"
listen = "{wanted.host}:{port}"
next_connection_delay_ms = 1
[{version}.1.connections]
connection_timeout_ms = 60000
max_payload_size = {wanted.max_packet_bytes}
max_inflight_count = {MAX_INFLIGHT}
dynamic_filters = true
"""
