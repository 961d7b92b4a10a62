"""The columns of a table that are its features, filled in place as they come.

Numbers    columns together, float32 [n, columns], as of a CSV
Lists      one column, [n, length, ...]: whole numbers as they are (uint8: pixels), others as float32; zeros behind
           shorter lists, and `lengths` says where these begin
Files      one column of structs {bytes, path} as Hugging Face writes them: see `images.py` and `sounds.py`
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import AnyArray, Dataset, check_size
from edgefl_device.sources import images, sounds

BATCH_ROWS = 1024


@dataclass(frozen=True)
class Columns:
    """A table that is not read yet. `where` begins every line about it; `batches` are of at most BATCH_ROWS rows."""

    where: str
    schema: Any
    rows: int
    file_bytes: int
    batches: Iterable[Any]

    @property
    def hugging_face(self) -> dict[str, dict[str, Any]]:
        """Its own description of columns; nothing where another program wrote the table."""
        try:
            features = json.loads((self.schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
            return {name: one for name, one in features.items() if isinstance(one, dict)}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return {}


Done = tuple[AnyArray, "AnyArray | None", "tuple[str, ...]"]  # features, lengths, notes


class Features:
    """All columns but the label's: together one feature where all are numbers, else each a feature of its name.

    Raises DataError for a column that can be none.
    """

    def __init__(self, names: list[str], table: Columns) -> None:
        types = [storage(table.schema.field(name).type) for name in names]
        if all(map(is_number, types)):
            self._readers: dict[str, Numbers | Lists | Files] = {names[0]: Numbers(names, table)}
        else:
            self._readers = {name: _reader_of(name, kind, table) for name, kind in zip(names, types, strict=True)}

    def add(self, columns: list[Any], start: int) -> None:
        if len(self._readers) == 1:
            next(iter(self._readers.values())).add(columns, start)
            return
        for reader, column in zip(self._readers.values(), columns, strict=True):
            reader.add([column], start)

    def done(self, labels: AnyArray, names: Mapping[int, str] | None) -> tuple[Dataset, tuple[str, ...]]:
        """The data set, and notes."""
        read = {name: reader.done() for name, reader in self._readers.items()}
        # A number beside an image, or beside a list, is the lesser feature wherever its column stands.
        main = next((name for name, reader in self._readers.items() if not isinstance(reader, Numbers)), None)
        first = read[main or next(iter(read))][0]
        lengths = next((lengths for _, lengths, _ in read.values() if lengths is not None), None)
        others = {name: array for name, (array, _, _) in read.items()} if len(read) > 1 else {}
        notes = dict.fromkeys(note for _, _, said in read.values() for note in said)
        return Dataset(first, labels, names, others, lengths), tuple(notes)


def _reader_of(name: str, kind: Any, table: Columns) -> Numbers | Lists | Files:
    innermost = kind
    while _is_list(innermost):
        innermost = innermost.value_type
    if _is_file(kind):
        return Files(name, table)
    if not is_number(innermost):
        raise DataError(
            f"{table.where}: column {name!r} holds {kind}; expected numbers",
            hint="leave the column out; features are numbers, lists of them, images or sounds",
        )
    return Lists(name, table) if _is_list(kind) else Numbers([name], table)


class Numbers:
    """Columns of numbers."""

    def __init__(self, names: list[str], table: Columns) -> None:
        check_size(4 * table.rows * len(names), table.where, file_bytes=table.file_bytes)
        self._array = np.empty((table.rows, len(names)), np.float32)

    def add(self, columns: list[Any], start: int) -> None:
        for i, column in enumerate(columns):
            self._array[start : start + len(column), i] = column.to_numpy(zero_copy_only=False)

    def done(self) -> Done:
        return self._array, None, ()


class Lists:
    """A column of lists, perhaps of lists of one length."""

    def __init__(self, name: str, table: Columns) -> None:
        self._name = name
        self._table = table
        self._lengths = np.zeros(table.rows, np.int64)
        self._array: AnyArray | None = None

    def add(self, columns: list[Any], start: int) -> None:
        where = f"{self._table.where}, from row {start + 1} on: {self._name!r}"
        lengths, values = _lengths(columns[0])
        rest = []
        while _is_list(values.type):
            inner, values = _lengths(values)
            if (inner != inner[:1]).any():
                raise DataError(f"{where} has lists of {inner.min()} and of {inner.max()} within its lists")
            rest.append(int(inner[0]) if len(inner) else 0)
            if values.null_count:
                break
        if values.null_count:
            raise DataError(f"{where} has lists with missing values", hint="fill them in")
        block = values.to_numpy(zero_copy_only=False)
        if block.dtype.kind not in "iu":
            block = block.astype(np.float32)  # truth as well: it is 0 and 1, and no pixel
        array = self._with_room(int(lengths.max()), rest, block.dtype, where)
        rows = array[start : start + len(lengths)]
        rows[np.arange(array.shape[1]) < lengths[:, None]] = block.reshape(-1, *rest)
        self._lengths[start : start + len(lengths)] = lengths

    def done(self) -> Done:
        assert self._array is not None, "no rows"
        shorter = int((self._lengths < self._array.shape[1]).sum())
        if not shorter:
            return self._array, None, ()
        note = f"{shorter} examples are shorter than the longest, of {self._array.shape[1]}: zeros behind them"
        return self._array, self._lengths, (note,)

    def _with_room(self, longest: int, rest: list[int], dtype: Any, where: str) -> AnyArray:
        """The array, as long as the longest list until now."""
        old = self._array
        if old is not None and list(old.shape[2:]) != rest:
            raise DataError(f"{where} has lists of shape {rest}; before them {list(old.shape[2:])}")
        if old is None or longest > old.shape[1]:
            size_bytes = self._table.rows * longest * math.prod(rest) * np.dtype(dtype).itemsize
            check_size(size_bytes, self._table.where, file_bytes=self._table.file_bytes)
            self._array = np.zeros((self._table.rows, longest, *rest), dtype)
            if old is not None:
                self._array[:, : old.shape[1]] = old
        assert self._array is not None
        return self._array


class Files:
    """A column of images or sounds, each as the file that it was."""

    def __init__(self, name: str, table: Columns) -> None:
        self._table = table
        self._kind = sounds if table.hugging_face.get(name, {}).get("_type") == "Audio" else images
        self._files: list[tuple[str, bytes | Path]] = []

    def add(self, columns: list[Any], start: int) -> None:
        for row, content in enumerate(columns[0].field("bytes").to_pylist(), start + 1):
            name = f"{self._table.where}, row {row}"
            if content is None:
                raise DataError(f"{name}: its content is in another file", hint="save the files within the table")
            self._files.append((name, content))

    def done(self) -> Done:
        [(array, lengths)], notes = self._kind.read([self._files])
        return array, lengths, notes


def _lengths(column: Any) -> tuple[AnyArray, Any]:
    """How long each list of a column is, and what is in them, one after the other."""
    from pyarrow import types

    if types.is_fixed_size_list(column.type):
        return np.full(len(column), column.type.list_size), column.flatten()
    return np.diff(column.offsets.to_numpy()), column.flatten()


def stored(column: Any) -> Any:
    return getattr(column, "storage", column)  # of an extension type, such as Hugging Face's Array2D


def storage(kind: Any) -> Any:
    return getattr(kind, "storage_type", kind)


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def is_number(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _is_file(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_struct(kind)) and {"bytes", "path"} <= {field.name for field in kind}
