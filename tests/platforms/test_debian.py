"""docs/deploy.md on a machine of Debian's own packages: a root that nothing is started in, but for what is looked at.

Slow: it downloads some 90 packages. Needs root and apt; on Raspberry Pi OS the packages are the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import package_size
import pytest

PACKAGES = ("base-files", "coreutils", "dash", "libc-bin", "libstdc++6", "mosquitto", "passwd", "procps", "systemd")
PYTHON = ("python3-minimal", "libpython3-stdlib")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (sys.platform == "linux" and os.geteuid() == 0 and shutil.which("apt-get") and shutil.which("dpkg-deb")),
        reason="needs Debian, and root for chroot",
    ),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's packages, unpacked and not configured, and edgefl as section 2 of the page installs it."""
    root = tmp_path_factory.mktemp("debian")
    for folder in ("apt/lists/partial", "apt/archives/partial", "tmp", "run", "proc", "srv", "root"):
        (root / folder).mkdir(parents=True)
    (root / "apt" / "status").touch()  # no package is installed yet: every dependency is downloaded
    places = {"State": "apt", "State::Lists": "apt/lists", "State::status": "apt/status", "Cache": "apt"}
    apt = ["apt-get", "-qq", "-oAPT::Install-Recommends=false", "-oAPT::Sandbox::User=root"]
    apt += [f"-oDir::{name}={root / place}" for name, place in places.items()]
    if subprocess.run([*apt, "update"]).returncode != 0:
        pytest.skip("no packages where this machine's come from")
    subprocess.run(
        [*apt, "install", "-y", "--download-only", *PACKAGES, *PYTHON], check=True, stdout=subprocess.DEVNULL
    )
    for package in sorted((root / "apt" / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    wheel = package_size.build(root / "apt")
    version = (root / "usr" / "bin" / "python3").readlink().name.removeprefix("python")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile"]
    pip += ["--target", str(root / "opt" / "edgefl"), "--python-version", version, "--only-binary=:all:"]
    subprocess.run([*pip, f"{wheel}[device]"], check=True)
    command = root / "usr" / "bin" / "edgefl"  # beside the interpreter, as in a virtual environment
    command.write_text('#!/bin/sh\nPYTHONPATH=/opt/edgefl exec /usr/bin/python3 -m edgefl "$@"\n')
    command.chmod(0o755)
    return root


def inside(root: Path, *command: str) -> str:
    """What a command says there, on both streams."""
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin", "HOME": "/root", "EDGEFL_BROKER": "mqtt://fleet:s@laptop.local"}
    done = subprocess.run(
        ["chroot", str(root), *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_unit_stands_in_debians_systemd(root: Path) -> None:
    np.savez(root / "srv" / "pi-1.npz", x=np.zeros((2, 8, 8), np.uint8), y=np.zeros(2, np.int64))
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nmosquitto:x:100:100::/:/bin/false\n")
    (root / "etc" / "group").write_text("root:x:0:\nmosquitto:x:100:\n")
    inside(root, *(["useradd", "--system", "--home-dir", "/var/lib/edgefl", "--shell", "/usr/sbin/nologin", "edgefl"]))
    device = ("edgefl", "device", "--name", "pi-1", "--data", "/srv/pi-1.npz", "--install")
    shown = inside(root, *device, "--print")
    heading, unit = shown.split("\n# /etc/edgefl/")[0].split("\n", 1)
    path = heading.removeprefix("# ")
    (root / path[1:]).write_text(unit)
    said = inside(root, "systemd-analyze", "verify", "--man=no", path, "mosquitto.service")
    assert "edgefl" not in said
    inside(root, "systemctl", "enable", "edgefl-pi-1")  # with the machine, by links alone
    assert (root / "etc/systemd/system/multi-user.target.wants/edgefl-pi-1.service").is_symlink()
    assert inside(root, "systemctl", "is-enabled", "edgefl-pi-1") == "enabled\n"


def test_what_a_device_needs_is_there_for_debians_python(root: Path) -> None:
    assert inside(root, "edgefl", "--version").startswith("edgefl, version")
    load = "import sys; sys.path.insert(0, '/opt/edgefl'); import edgefl_device.device, onnxruntime; print('loaded')"
    assert inside(root, "/usr/bin/python3", "-c", load).endswith("loaded\n")
