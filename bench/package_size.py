"""What `pip install 'edgefl[device]'` puts on a disk, in MB of 10^6 bytes, without byte code and without pip.

    python bench/package_size.py                # for this machine, and for a Raspberry Pi (64-bit)
    python bench/package_size.py exporter       # of another extra

The wheel of this source tree is built and installed with what it needs into an empty folder, together with
`cryptography`, which signatures and certificates will need. Packages are named with what they take.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path

import click
from harness import Row, Target, finish

ROOT = Path(__file__).parents[1]
LIMIT_MB = 140.0
BESIDE = "cryptography"
PI = "aarch64"
GLIBC_OF_PI_OS = 36  # 2.36, of Debian 12: a wheel may be made for it or any before
SHOWN = 6


def build(folder: Path) -> Path:
    """The wheel of this source tree."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(requirements: Sequence[str], folder: Path, machine: str) -> None:
    """Into an empty folder, for this machine or for a Pi."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    if machine != platform.machine():
        wheels = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC_OF_PI_OS, 16, -1)]
        wheels.append(f"manylinux2014_{machine}")
        command += ["--only-binary=:all:", *(word for wheel in wheels for word in ("--platform", wheel))]
    subprocess.run([*command, "--target", str(folder), *requirements], check=True)


def sizes_mb(folder: Path) -> dict[str, float]:
    """Each package in a folder -> what its files take."""
    found = distributions(path=[str(folder)])
    return {one.metadata["Name"]: _size_mb(one) for one in found}


def _size_mb(one: Distribution) -> float:
    files = (Path(str(file.locate())) for file in one.files or () if file.suffix != ".pyc")
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def measure(extra: str, machine: str, wheel: Path, folder: Path) -> tuple[Row, float]:
    """A row, and the sum of it."""
    install([f"{wheel}[{extra}]", BESIDE], folder, machine)
    sizes = sizes_mb(folder)
    largest = sorted(sizes, key=lambda name: -sizes[name])[:SHOWN]
    total = sum(sizes.values())
    row: Row = {
        "extra": extra,
        "machine": machine,
        "MB": total,
        "packages": len(sizes),
        "largest": ", ".join(f"{name} {sizes[name]:.1f}" for name in largest),
    }
    return row, total


@click.command(help=__doc__)
@click.argument("extras", nargs=-1)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text")
def main(extras: tuple[str, ...], form: str) -> None:
    rows, targets = [], []
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        for extra in extras or ("device",):
            for machine in dict.fromkeys((platform.machine(), PI)):
                row, total = measure(extra, machine, wheel, Path(folder) / f"{extra}-{machine}")
                rows.append(row)
                if extra == "device":
                    targets.append(Target(f"what a device installs with {BESIDE} on {machine} in MB", total, LIMIT_MB))
    finish("Installed, in MB, without byte code", rows, targets, form)


if __name__ == "__main__":
    main()
