"""Bundles in a folder of the person's own, each under the hash of what determines it.

    ~/.cache/edgefl/bundles/KEY.SHA256/      a bundle whose manifest has this SHA-256
    EDGEFL_CACHE                             another folder than ~/.cache/edgefl; empty: none

A cache can only make an export faster: an entry is a bundle like any other, of which every byte is checked before it is
used, and whatever goes wrong with the folder is said in a line and the bundle is made.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from edgefl.bundle import Bundle, read, write
from edgefl.errors import BundleError

VARIABLE = "EDGEFL_CACHE"
MOST_BYTES = 2**30  # of all entries; those that were used longest ago go first
ABANDONED_S = 24 * 3600.0  # after so long a temporary folder is what a kill has left

Tell = Callable[[str], None]


def folder() -> Path | None:
    """Where bundles are kept; None for nowhere."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return Path(given).absolute() / "bundles" if given else None
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "edgefl" / "bundles"


def find(place: Path, key: str) -> Bundle | None:
    """The bundle of that key, every byte of it checked; a damaged one is removed."""
    for path in sorted(place.glob(f"{key}.*")):
        try:
            found = read(path)
            if found.sha256 != path.name.partition(".")[2]:
                raise BundleError(f"{path} was changed")
        except (BundleError, OSError):
            shutil.rmtree(path, ignore_errors=True)
            continue
        with suppress(OSError):
            os.utime(path)
        return found
    return None


def copy(found: Bundle, out: Path, name: str) -> Bundle:
    """The bundle written to `out`, under a name that is no part of its key."""
    manifest = found.manifest
    return write(
        out,
        msgspec.structs.replace(manifest, name=name),
        weights=found.weights(),
        programs={name: found.program_bytes(name) for name in manifest.programs},
        golden={name: found.golden(name) for name in manifest.programs},
    )


def keep(place: Path, key: str, made: Bundle, tell: Tell) -> None:
    """Put a bundle there for the next time; where that cannot be, say why."""
    path = place / f"{key}.{made.sha256}"
    try:
        if not path.exists():
            copy(made, path, made.manifest.name)
        sweep(place)
    except (OSError, BundleError) as error:
        if not path.exists():  # else another process has put the same there
            tell(f"not kept for the next time: {getattr(error, 'strerror', None) or error}")


def sweep(place: Path, most_bytes: int = MOST_BYTES) -> None:
    """Remove the entries that were used longest ago, until the others are at most `most_bytes`, and what kills left."""
    entries = []
    for path in place.iterdir():
        with suppress(OSError):  # another process removes it as well
            used_s = path.stat().st_mtime
            if not path.name.startswith("."):
                size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                entries.append((used_s, size_bytes, path))
            elif time.time() - used_s > ABANDONED_S:
                shutil.rmtree(path, ignore_errors=True)
    left = sum(size_bytes for _, size_bytes, _ in entries)
    for _, size_bytes, path in sorted(entries):
        if left <= most_bytes:
            break
        shutil.rmtree(path, ignore_errors=True)
        left -= size_bytes
