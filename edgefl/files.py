"""Files that are whole or absent: a temporary name, fsync, rename."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgefl.errors import EdgeflError

try:
    import fcntl
except ImportError:  # Windows: two processes on one folder are not noticed there
    fcntl = None  # type: ignore[assignment]


def sha256_hex(data: bytes | memoryview) -> str:
    """The SHA-256 of `data` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` so that a crash leaves the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        os.fchmod(descriptor, 0o666 & ~_umask())
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable (a rename is not, until its directory is synced)."""
    if os.name == "nt":
        return  # Windows has no directory handles to sync
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def directory_atomic(path: Path) -> Iterator[Path]:
    """A temporary sibling directory that becomes `path` when the block ends well, and vanishes when it does not.

    An existing `path` is replaced as a whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
            else:
                sync_directory(file)
        sync_directory(temporary)
        if path.exists():
            doomed = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            old = doomed / path.name
            try:
                os.replace(path, old)
                os.replace(temporary, path)
            except BaseException:
                if old.exists():
                    os.replace(old, path)
                doomed.rmdir()
                raise
            shutil.rmtree(doomed)
        else:
            os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def locked(path: Path, error: EdgeflError, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` during the block. Raises `error` when another process still holds it after so long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    given_up_s = time.monotonic() + patience_s
    with open(path, "w") as file:
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= given_up_s:
                    raise error from None
                time.sleep(0.05)
        yield


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
