"""Files that are whole or absent: a temporary name, fsync, rename."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

import msgspec

from edgefl.errors import EdgeflError, InputError

try:
    import fcntl
except ImportError:  # Windows: two processes on one folder are not noticed there
    fcntl = None  # type: ignore[assignment]


Kind = TypeVar("Kind")
_TEMPORARY = re.compile(r"\.(.+?)(\.old)?\.[a-z0-9_]{8}", re.DOTALL)  # the names that `tempfile` makes below


def sha256_hex(data: bytes | memoryview) -> str:
    """The SHA-256 of `data` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def write_atomic(path: Path, data: bytes | memoryview | Iterable[bytes | memoryview]) -> None:
    """Write `data`, whole or part by part, to `path` so that a crash leaves the old file or the new one, never a
    piece."""
    make_folder(path.parent)
    with writing(path):
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            os.fchmod(descriptor, 0o666 & _as_private_as(path.parent))
            with os.fdopen(descriptor, "wb") as file:
                for part in (data,) if isinstance(data, (bytes, memoryview)) else data:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        sync_directory(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError of the block that names no file, as of a full disk, names `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def read_bytes(path: Path, most_bytes: int | None = None, *, error: type[InputError] = InputError) -> bytes:
    """A file's bytes. Raises `error` when it cannot be read, or has more than `most_bytes`: then it is not read."""
    try:
        if path.exists() and not path.is_file():  # to open a pipe would wait for ever
            raise error(f"{path} cannot be read: {'Is a directory' if path.is_dir() else 'it is no file'}")
        with open(path, "rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if most_bytes is not None and size_bytes > most_bytes:
                raise error(f"{path} has {size_bytes} bytes; expected at most {most_bytes}")
            return file.read() if most_bytes is None else file.read(most_bytes)
    except (OSError, ValueError, MemoryError) as caught:  # ValueError: a NUL in the path
        reason = getattr(caught, "strerror", None) or str(caught) or "it does not fit in memory"
        raise error(f"{path} cannot be read: {reason}") from caught


def from_json(data: str | bytes, kind: type[Kind]) -> Kind:
    """A typed value from JSON. Raises ValueError when it is none, or not of this kind.

    Python's own reader, so that a number of whatever size is read as it was written.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    return from_builtins(value, kind)


def from_builtins(value: object, kind: type[Kind]) -> Kind:
    """A typed value from dicts, lists, texts and numbers. Raises ValueError when they are not of this kind."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.MsgspecError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error


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
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with writing(path):
            yield temporary
        os.chmod(temporary, 0o777 & _as_private_as(path.parent))
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


def sweep(folder: Path, ours: Iterable[str]) -> int:
    """Remove what `write_atomic` and `directory_atomic` left below `folder` when their process was killed; how many.

    `ours`: patterns of the paths, relative to `folder`, that are written there: "dreams/*.png", and of directories
    "bundles/*/"; "*" is no "/". Only a temporary of such a path goes, so nothing of a person's does. The caller holds
    the folder's lock: a process that writes there would lose its temporaries. A directory that was being replaced is
    put back where the new one had not taken its place yet.
    """
    swept = 0
    for pattern in ours:
        *place, name = pattern.rstrip("/").split("/")
        for parent in _folders(folder, place):
            for path in sorted(parent.glob(".*")):
                swept += _sweep_one(path, name, directory=pattern.endswith("/"))
    return swept


def _folders(folder: Path, place: Iterable[str]) -> list[Path]:
    """The directories at `place`, a pattern for each level. No link is followed: it may lead to a person's own."""
    found = [folder] if folder.is_dir() else []
    for pattern in place:
        inside = [path for parent in found for path in parent.iterdir() if fnmatchcase(path.name, pattern)]
        found = sorted(path for path in inside if path.is_dir() and not path.is_symlink())
    return found


def _sweep_one(path: Path, name: str, *, directory: bool) -> bool:
    """Remove `path` if it is a temporary of a file, or a directory, whose name matches `name`; whether it was."""
    match = _TEMPORARY.fullmatch(path.name)
    if match is None or not fnmatchcase(match[1], name) or path.is_symlink() or path.is_dir() != directory:
        return False
    if not directory:
        if match[2]:
            return False  # only directories are put aside
        path.unlink()
        return True
    old, final = path / match[1], path.with_name(match[1])
    if match[2] and old.exists() and not final.exists():
        os.replace(old, final)
        sync_directory(path.parent)
    shutil.rmtree(path)
    return True


@contextmanager
def locked(path: Path, error: EdgeflError, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` during the block. Raises `error` when another process still holds it after so long."""
    make_folder(path.parent)
    given_up_s = time.monotonic() + patience_s
    with open(path, "w", opener=_private) as file:
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= given_up_s:
                    raise error from None
                time.sleep(0.05)
        yield


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def make_private(folder: Path) -> None:
    """A folder that nobody but its owner may enter; what `write_atomic` makes in it is as private."""
    make_folder(folder)
    with suppress(PermissionError):  # somebody else's, who lets us write there
        folder.chmod(0o700)


def make_folder(path: Path) -> None:
    """A directory, and those above it; one that is missing becomes as private as the one that it is in. Their names are
    durable."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with suppress(FileExistsError):  # another process was faster
        path.mkdir(0o777 & _as_private_as(path.parent))
    sync_directory(path.parent)


def _as_private_as(folder: Path) -> int:
    """The permissions that something new in a folder may have: none that the folder does not give, or the umask takes.

    Whoever owns the file may read and write it all the same.
    """
    umask = os.umask(0)
    os.umask(umask)
    return (folder.stat().st_mode | 0o700) & 0o777 & ~umask
