"""about.json of a run directory: when the run was asked for, with which versions, on what machine."""

from __future__ import annotations

import os
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

import edgefl
from edgefl.errors import InputError
from edgefl.files import from_json, read_bytes, write_atomic
from edgefl.memory import installed_mb

ABOUT = "about.json"
PACKAGES = ("onnxruntime", "onnx", "torch", "numpy")
MAX_BYTES = 2**16


class About(msgspec.Struct, frozen=True):
    """Of the aggregator's machine at the first start of a run.

    started     seconds since 1970, when the verb was called: before exports, broker and devices
    versions    of edgefl, Python and the packages that compute, where they are installed
    """

    started: float
    versions: dict[str, str]
    platform: str
    processor: str
    cores: int
    memory_mb: int


def about_now() -> About:
    """What there is to say of this moment and this machine."""
    return About(
        started=round(time.time(), 3),
        versions={"edgefl": edgefl.__version__, "python": platform.python_version()} | _installed(),
        platform=platform.platform(terse=True),
        processor=_processor(),
        cores=os.cpu_count() or 0,
        memory_mb=installed_mb(),
    )


def write_about(place: Path) -> None:
    """Note it once, at a run's first start."""
    if not (place / ABOUT).exists():
        write_atomic(place / ABOUT, msgspec.json.encode(about_now()))


def read_about(place: Path) -> About | None:
    """None where a run has none that can be read: nothing but the report needs it."""
    try:
        return from_json(read_bytes(place / ABOUT, MAX_BYTES), About)
    except (InputError, ValueError):
        return None


def _installed() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """A board's name where it has one ("Raspberry Pi 4 Model B"), else the processor's."""
    for path, pattern in (("/proc/device-tree/model", r"(.+?)\0*\Z"), ("/proc/cpuinfo", r"(?m)^model name\s*: (.+)$")):
        try:
            found = re.search(pattern, Path(path).read_text(errors="replace"))
        except OSError:
            continue
        if found is not None:
            return found[1]
    return platform.processor() or platform.machine()
