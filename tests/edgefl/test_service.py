"""edgefl under systemd: the unit that --install writes, as systemd itself reads it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgefl import service as services
from edgefl.cli import main
from edgefl.errors import ConfigError, EdgeflError
from edgefl.service import Service, install, secrets, unit

ODD = ("/bin/true", "device", "--data", '/srv/my 100 % "data"/$HOME/a\\b.npz', "--set", "max_steps=4")
SERVICE = Service("edgefl-pi-1", "edgefl device pi-1", ODD, environment={"EDGEFL_BROKER": "mqtt://u:p%23@h"}, state="x")


def lines(text: str) -> dict[str, str]:
    """A unit's settings."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def test_a_word_is_one_word_whatever_is_in_it() -> None:
    started = lines(unit(SERVICE))["ExecStart"]
    words = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(started)]
    assert tuple(words) == ODD
    with pytest.raises(ConfigError, match="cannot stand in a systemd unit"):
        unit(replace(SERVICE, command=("/bin/true", "a\nExecStartPre=/bin/evil")))


def test_a_device_comes_back_for_ever_and_a_run_until_it_is_over() -> None:
    device, aggregator = lines(unit(SERVICE)), lines(unit(replace(SERVICE, ends=True)))
    assert device["Restart"] == "always" and device["StartLimitIntervalSec"] == "0"
    assert aggregator["Restart"] == "on-failure" and "ExecStopPost" not in device
    for code, status, told in (("exited", "0", "disable edgefl-run"), ("exited", "130", ""), ("killed", "TERM", "")):
        script = aggregator["ExecStopPost"].removeprefix("+").replace("$$", "$").replace("%n", "edgefl-run")
        environment = {"EXIT_CODE": code, "EXIT_STATUS": status, "PATH": os.environ["PATH"]}
        script = f"systemctl() {{ echo $*; }}; {shlex.split(script)[2]}"
        done = subprocess.run(["/bin/sh", "-c", script], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout.strip()) == (0, told)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
@pytest.mark.parametrize("ends", [False, True])
def test_systemd_has_no_fault_with_it(tmp_path: Path, ends: bool) -> None:
    path = tmp_path / "edgefl-pi-1.service"
    folder = tmp_path / "a run" if ends else None
    path.write_text(unit(replace(SERVICE, user="root", ends=ends, folder=folder)))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
def test_little_is_left_to_whoever_breaks_in(tmp_path: Path) -> None:
    """systemd's own count of what a service may do, from 0 to 10."""
    (tmp_path / "edgefl-pi-1.service").write_text(unit(SERVICE))
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=40", "edgefl-pi-1.service"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_password_is_in_the_unit() -> None:
    assert "p%23" not in unit(SERVICE) and "EnvironmentFile=/etc/edgefl/edgefl-pi-1.env" in unit(SERVICE)
    assert secrets(SERVICE) == 'EDGEFL_BROKER="mqtt://u:p%23@h"\n'


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of files: its commands note how they were called, and fail where FAIL names them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("systemctl", "getent", "useradd", "runuser"):
        script = folder / name
        script.write_text(
            f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n[ "$FAIL" != {name} ] || {{ echo no >&2; exit 1; }}\n'
        )
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("FAIL", "getent")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("UNITS", "SECRETS", "SYSTEMD"):
        monkeypatch.setattr(services, name, tmp_path / name)
    services.SYSTEMD.mkdir()
    return tmp_path


def test_it_is_installed_and_started(system: Path) -> None:
    said: list[str] = []
    install(SERVICE, said.append)
    assert (system / "UNITS" / "edgefl-pi-1.service").read_text() == unit(SERVICE)
    secret = system / "SECRETS" / "edgefl-pi-1.env"
    assert secret.read_text() == secrets(SERVICE) and secret.stat().st_mode & 0o777 == 0o600
    calls = (system / "calls").read_text().splitlines()
    assert calls[1].startswith("useradd --system") and calls[2] == "runuser -u edgefl -- test -r /bin/true"
    assert calls[3:] == [
        "systemctl daemon-reload",
        "systemctl enable edgefl-pi-1",
        "systemctl restart edgefl-pi-1",
    ]
    assert "edgefl-pi-1 is running, and starts with this machine" in said


def test_data_that_the_user_cannot_read_is_said_before_anything_is_written(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "runuser")
    with pytest.raises(ConfigError, match="the user edgefl cannot read /bin/true") as caught:
        install(SERVICE, print)
    assert caught.value.hint is not None and "sudo install -D -o edgefl" in caught.value.hint
    assert not (system / "UNITS").exists() and not (system / "SECRETS").exists()


def test_what_systemd_says_is_said(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "systemctl")
    with pytest.raises(EdgeflError, match="systemctl daemon-reload: no"):
        install(SERVICE, print)


def test_only_root_installs_and_only_where_systemd_runs(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="only root can install a service"):
        install(SERVICE, print)
    services.SYSTEMD.rmdir()
    with pytest.raises(ConfigError, match="not run by systemd") as caught:
        install(SERVICE, print)
    assert caught.value.hint == "--install --print shows what would be written"


# --- the commands -------------------------------------------------------------------------------------------------


def write_data(path: Path) -> None:
    np.savez(path, x=np.zeros((2, 4), np.float32), y=np.zeros(2, np.int64))


def edgefl(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def test_a_device_shows_its_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are whole, whatever the folder was; a name is none, even where a file is called so."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "pi-1.npz")
    for name in ("pi-1", "ca.crt"):
        Path(name).touch()
    done = edgefl(
        *("device", "--broker", "mqtts://u:secret@h", "--name", "pi-1", "--data", "pi-1.npz", "--ca", "ca.crt"),
        *("--set", "max_steps=4", "--set", "tolerance=0.1", "--as-is", "--install", "--print"),
    )
    assert done.exit_code == 0, done.output
    settings = lines(done.output)
    assert shlex.split(settings["ExecStart"])[1:] == [
        *("device", "--name", "pi-1", "--data", str(tmp_path / "pi-1.npz"), "--as-is"),
        *("--set", "max_steps=4", "--set", "tolerance=0.1", "--ca", str(tmp_path / "ca.crt")),
        *("--forever", "--state", "/var/lib/edgefl/pi-1"),
    ]
    assert settings["StateDirectory"] == "edgefl/pi-1" and settings["User"] == "edgefl"
    assert "secret" not in done.output and settings["EDGEFL_BROKER"] == "..."


def test_an_aggregator_shows_its_unit(tmp_path: Path) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text('name = "lab"\nbundle = "digits.bundle"\n[method]\nname = "fedavg"\n')
    done = edgefl("aggregate", str(run_file), "--install", "--print")
    assert done.exit_code == 0, done.output
    settings = lines(done.output)
    assert shlex.split(settings["ExecStart"])[1:] == ["aggregate", str(run_file), "--resume", "auto"]
    assert settings["WorkingDirectory"] == shlex.split(settings["ReadWritePaths"])[0] == str(tmp_path)
    assert settings["User"] == tmp_path.owner() and "# /etc/systemd/system/edgefl-aggregator-lab.service" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--print",), "--print shows what --install would do"),
        (("--install", "--print", "--name", "PI 1"), "device name 'PI 1' cannot be used"),
        (("--install", "--print", "--broker", "http://h"), "http://h"),
        (("--install", "--print", "--data", "nowhere.npz"), "nowhere.npz"),
    ],
)
def test_what_could_not_run_is_not_installed(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    write_data(tmp_path / "x.npz")
    given = {"--broker": "mqtt://h", "--name": "pi-1", "--data": str(tmp_path / "x.npz")}
    pairs = [word for pair in given.items() for word in pair if pair[0] not in words]
    done = edgefl("device", *pairs, *words)
    assert done.exit_code == 3 and said in done.output and "ExecStart" not in done.output
