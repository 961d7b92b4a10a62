"""The names of classes, as somebody says them: a list, or a file with one on each line. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgefl.data_contract import check_class_names, class_name
from edgefl.errors import InputError
from edgefl.files import read_bytes

MAX_FILE_BYTES = 2**22


def read_class_names(said: str | Path | Sequence[str]) -> tuple[str, ...]:
    """What `classes` of a recipe says: names, "a,b,c", or a file. Blank lines and blanks around a name do not count.

    Raises InputError for a file that cannot be read, and for a name that comes twice.
    """
    parts = said.split(",") if isinstance(said, str) else [str(said)] if isinstance(said, Path) else list(said)
    if len(parts) != 1 or not _is_file(parts[0]):
        return _checked([class_name(part) for part in parts if part.strip()], "--classes")
    path = Path(parts[0])
    try:
        lines = read_bytes(path, MAX_FILE_BYTES, error=InputError).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text", hint="a file of classes has one name on each line") from error
    names = [class_name(line) for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path} names no classes", hint="a file of classes has one name on each line")
    return _checked(names, str(path))


def _is_file(text: str) -> bool:
    return Path(text).is_file() or "/" in text or "\\" in text or text.endswith(".txt")


def _checked(names: Sequence[str], where: str) -> tuple[str, ...]:
    try:
        check_class_names(names, len(names))
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    return tuple(names)
