"""An edgefl command as a systemd service: it starts with the machine, and again when it ends.

service = Service("edgefl-pi-1", "edgefl device pi-1", ("/opt/edgefl/bin/edgefl", "device", ...), user="edgefl", ...)
print(unit(service))          what `install` writes
install(service, print)       as root
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgefl.errors import ConfigError, EdgeflError
from edgefl.files import make_private, write_atomic

UNITS = Path("/etc/systemd/system")
SECRETS = Path("/etc/edgefl")  # environment files, which only root reads: addresses may hold passwords
STATE = Path("/var/lib/edgefl")
SYSTEMD = Path("/run/systemd/system")  # is there where systemd runs the machine
USER = "edgefl"
AGAIN_S = 10  # a command that ended is started again after so long, for ever
STOPPED = 130  # how a command ends that was asked to: edgefl.cli


@dataclass(frozen=True)
class Service:
    """A command to keep running.

    reads       files and folders that the user must be able to read
    state       a folder below STATE that is the user's alone; systemd makes it. None: `folder` is where it writes
    folder      where the command runs, and what it may write beside `state`
    ends        it has an end: once that is reached it is not started again, nor with the machine
    """

    name: str
    about: str
    command: Sequence[str]
    user: str = USER
    environment: Mapping[str, str] = field(default_factory=dict)
    reads: Sequence[Path] = ()
    state: str | None = None
    folder: Path | None = None
    ends: bool = False


def edgefl_command() -> str:
    """The `edgefl` of this environment. Raises ConfigError where there is none."""
    path = Path(sys.executable).with_name("edgefl")
    if not path.is_file():
        raise ConfigError(f"no edgefl command at {path}", hint="install edgefl into this environment with pip")
    return str(path)


def unit(service: Service) -> str:
    """The text of its unit. Raises ConfigError for a word that no unit can hold."""
    lines = ["[Unit]", f"Description={service.about}"]
    lines += ["Wants=network-online.target", "After=network-online.target mosquitto.service"]
    lines += ["StartLimitIntervalSec=0", "", "[Service]", "Type=exec"]
    lines += [f"User={service.user}", f"ExecStart={' '.join(_word(word) for word in service.command)}"]
    if service.environment:
        lines.append(f"EnvironmentFile={secrets_of(service)}")
    if service.ends:
        # A run that is over would begin anew with the machine.
        over = '[ "$$EXIT_CODE $$EXIT_STATUS" != "exited 0" ] || systemctl disable %n'
        lines.append(f"ExecStopPost=+/bin/sh -c '{over}'")
    lines += [f"Restart={'on-failure' if service.ends else 'always'}", f"RestartSec={AGAIN_S}"]
    lines += ["KillMode=mixed", "TimeoutStopSec=60", f"SuccessExitStatus={STOPPED}"]
    if service.state is not None:
        lines += [f"StateDirectory={service.state}", "StateDirectoryMode=0700"]
    if service.folder is not None:
        folder = _text(str(service.folder)).replace("%", "%%")
        lines += [f"WorkingDirectory={folder}", f"ReadWritePaths={_quoted(folder)}"]
    lines += ["UMask=0077", *_HARDENING, "", "[Install]", "WantedBy=multi-user.target", ""]
    return "\n".join(lines)


_HARDENING = (
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    "ProtectHome=read-only",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
)


def secrets(service: Service) -> str:
    """The text of its environment file."""
    return "".join(f"{name}={_quoted(value)}\n" for name, value in service.environment.items())


def secrets_of(service: Service) -> Path:
    """Where its environment file lies, which only root may read."""
    return SECRETS / f"{service.name}.env"


def install(service: Service, say: Callable[[str], None]) -> None:
    """Make the user, write unit and environment file, start it now and with the machine; again, it is replaced.

    Raises ConfigError without root or systemd, and where the user cannot read what the command reads.
    """
    if shutil.which("systemctl") is None or not SYSTEMD.is_dir():
        raise ConfigError("this machine is not run by systemd", hint="--install --print shows what would be written")
    if os.geteuid() != 0:
        raise ConfigError("only root can install a service", hint="the same with sudo, or --install --print to see it")
    text = unit(service)
    if service.user == USER and _done("getent", "passwd", USER) != 0:
        _do("useradd", "--system", "--home-dir", str(STATE), "--shell", "/usr/sbin/nologin", USER)
        say(f"made the user {USER}")
    for path in (Path(service.command[0]), *service.reads):
        if _done("runuser", "-u", service.user, "--", "test", "-r", str(path)) != 0:
            raise ConfigError(
                f"the user {service.user} cannot read {path}",
                hint=f"put it where that user can: sudo install -D -o {service.user} -m 600 FILE {STATE}/FILE",
            )
    if service.environment:
        make_private(SECRETS)
        write_atomic(secrets_of(service), secrets(service).encode())
        say(f"wrote {secrets_of(service)}, which only root reads")
    write_atomic(UNITS / f"{service.name}.service", text.encode())
    say(f"wrote {UNITS / service.name}.service")
    _do("systemctl", "daemon-reload")
    _do("systemctl", "enable", service.name)
    _do("systemctl", "restart", service.name)
    say(f"{service.name} is running, and starts with this machine")
    say(f"look: journalctl -o cat -fu {service.name}; stop: systemctl stop {service.name}")
    say(f"remove: systemctl disable --now {service.name}")


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"it ended with {done.returncode}").splitlines()
        raise EdgeflError(f"{' '.join(command)}: {said[-1]}")


def _done(*command: str) -> int:
    return subprocess.run(command, capture_output=True).returncode


def _word(word: str) -> str:
    """A word of ExecStart: nothing in it is a specifier, a variable or a quote."""
    text = _text(word).replace("%", "%%").replace("$", "$$")
    return text if re.fullmatch(r"[\w@%+=:,./$-]+", text) else _quoted(text)


def _quoted(text: str) -> str:
    escaped = _text(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _text(text: str) -> str:
    if not text.isprintable():
        raise ConfigError(f"{text!r} cannot stand in a systemd unit", hint="use names of printable characters")
    return text
