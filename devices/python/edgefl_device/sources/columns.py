"""Columns as Arrow reads them, in batches: one is the label, the others are the features.

numbers             all of them together, float32 [n, columns], as of a CSV
one column of lists [n, length, ...], of whole numbers as they are (uint8: pixels), of others as float32
one of images       structs {bytes, path} as Hugging Face writes them: see `images.py`
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import AnyArray, Dataset, check_size
from edgefl_device.sources import images
from edgefl_device.sources.label_column import KNOWN, Labels, find_label

BATCH_ROWS = 1024


@dataclass(frozen=True)
class Columns:
    """A table that is not read yet. `where` begins every line about it; `batches` are of at most BATCH_ROWS rows."""

    where: str
    schema: Any
    rows: int
    file_bytes: int
    batches: Iterable[Any]


def to_dataset(table: Columns, label: str | None) -> tuple[Dataset, tuple[str, ...]]:
    """The examples, and notes. Raises DataError for a missing value, and for columns that are no features."""
    names: list[str] = table.schema.names
    if len(names) < 2:
        raise DataError(f"{table.where}: {len(names)} columns; expected features and a label")
    at = find_label(names, label, table.where)
    guessed = label is None and names[at].lower() not in KNOWN
    features = _reader_of([name for i, name in enumerate(names) if i != at], table)
    labels = _Labels(table.schema.field(at), table)
    start = 0
    for batch in table.batches:
        if not batch.num_rows:
            continue
        for name, column in zip(names, batch.columns, strict=True):
            if column.null_count:
                row = start + column.is_null().to_numpy(zero_copy_only=False).argmax() + 1
                raise DataError(
                    f"{table.where}, row {row}: {name!r} is missing",
                    hint="remove the example or fill in its missing values",
                )
        columns = [_stored(column) for column in batch.columns]
        with np.errstate(over="ignore"):  # infinity is refused with the contract
            labels.add(columns.pop(at), start)
            features.add(columns, start)
        start += batch.num_rows
    if start != table.rows:
        raise DataError(f"{table.where} is damaged: it says {table.rows} rows and has {start}")
    if not start:
        raise DataError(f"{table.where}: no examples")
    array, notes = features.done()
    values, words = labels.done()
    notes += (f"the label is the last column, {names[at]!r}",) if guessed else ()
    return Dataset(array, values, words or _class_names(table.schema, names[at])), notes


class _Numbers:
    """Columns of numbers, or one of lists of numbers: filled in place."""

    def __init__(self, names: list[str], table: Columns) -> None:
        self._names = names
        self._table = table
        self._array: AnyArray | None = None

    def add(self, columns: list[Any], start: int) -> None:
        block = self._block(columns, start)
        if self._array is None:
            row_bytes = block.itemsize * int(np.prod(block.shape[1:], dtype=np.int64))
            check_size(self._table.rows * row_bytes, self._table.where, file_bytes=self._table.file_bytes)
            self._array = np.empty((self._table.rows, *block.shape[1:]), block.dtype)
        if block.shape[1:] != self._array.shape[1:]:
            raise DataError(
                f"{self._table.where}, row {start + 1}: {self._names[0]!r} has shape {list(block.shape[1:])}; "
                f"before it {list(self._array.shape[1:])}"
            )
        if start + len(block) <= len(self._array):  # else there are more rows than said, which is refused
            self._array[start : start + len(block)] = block

    def done(self) -> tuple[AnyArray, tuple[str, ...]]:
        assert self._array is not None, "no rows"
        return self._array, ()

    def _block(self, columns: list[Any], start: int) -> AnyArray:
        block = np.empty((len(columns[0]), len(columns)), np.float32)
        for i, column in enumerate(columns):
            block[:, i] = column.to_numpy(zero_copy_only=False)
        return block


class _Lists(_Numbers):
    def _block(self, columns: list[Any], start: int) -> AnyArray:
        import pyarrow as pa

        name = f"{self._table.where}, from row {start + 1} on: {self._names[0]!r}"
        values, shape = columns[0], [len(columns[0])]
        while _is_list(values.type):
            if pa.types.is_fixed_size_list(values.type):
                shape.append(values.type.list_size)
            else:
                lengths = np.diff(values.offsets.to_numpy())
                shape.append(int(lengths[0]) if len(lengths) else 0)
                if (lengths != shape[-1]).any():
                    other = lengths[lengths != shape[-1]][0]
                    raise DataError(f"{name} has lists of {shape[-1]} and of {other}", hint="pad them to one length")
            values = values.flatten()
            if values.null_count:
                raise DataError(f"{name} has lists with missing values", hint="fill them in")
        array = values.to_numpy(zero_copy_only=False)
        return _plain(array).reshape(shape)


class _Images:
    def __init__(self, names: list[str], table: Columns) -> None:
        self._table = table
        self._files: list[images.File] = []

    def add(self, columns: list[Any], start: int) -> None:
        for row, content in enumerate(columns[0].field("bytes").to_pylist(), start + 1):
            name = f"{self._table.where}, row {row}"
            if content is None:
                raise DataError(f"{name}: its image is in another file", hint="save the images within the table")
            self._files.append((name, content))

    def done(self) -> tuple[AnyArray, tuple[str, ...]]:
        form = images.survey(self._files)
        return images.decode(self._files, form), form.notes


def _reader_of(names: list[str], table: Columns) -> _Numbers | _Images:
    """Raises DataError for columns that cannot be features together."""
    types = {name: _storage(table.schema.field(name).type) for name in names}
    if len(names) == 1 and _is_list(types[names[0]]):
        innermost = types[names[0]]
        while _is_list(innermost):
            innermost = innermost.value_type
        types = {names[0]: innermost}
        kind: type[_Numbers | _Images] = _Lists
    elif len(names) == 1 and _is_file(types[names[0]]):
        return _Images(names, table)
    else:
        kind = _Numbers
    for name, got in types.items():
        if not _is_number(got):
            raise DataError(
                f"{table.where}: column {name!r} holds {got}; expected numbers",
                hint="leave the column out; features are columns of numbers, or one of lists, or one of images",
            )
    return kind(names, table)


class _Labels:
    """Numbers, or words."""

    def __init__(self, field: Any, table: Columns) -> None:
        import pyarrow as pa

        self._table = table
        self._words = Labels()
        kind = _storage(field.type)
        self._is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
        if not self._is_text and not _is_number(kind):
            raise DataError(f"{table.where}: the label {field.name!r} holds {kind}; expected numbers or words")
        self._blocks: list[AnyArray] = []

    def add(self, column: Any, start: int) -> None:
        if not self._is_text:
            block = column.to_numpy(zero_copy_only=False)
            self._blocks.append(block.astype(np.float32 if block.dtype.kind == "f" else np.int64))
            return
        for row, cell in enumerate(column.to_pylist(), start + 1):
            if wrong := self._words.add(str(cell).strip()):
                raise DataError(f"{self._table.where}, row {row}: {wrong}")

    def done(self) -> tuple[AnyArray, Mapping[int, str] | None]:
        return self._words.done() if self._is_text else (np.concatenate(self._blocks), None)


def _class_names(schema: Any, label: str) -> dict[int, str] | None:
    """What Hugging Face wrote that the numbers of a ClassLabel mean."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features[label]["names"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return {i: str(name) for i, name in enumerate(names)} if isinstance(names, list) else None


def _plain(array: AnyArray) -> AnyArray:
    """Whole numbers as they are, others as float32. Truth is 0 and 1, and no pixel."""
    return array if array.dtype.kind in "iu" else array.astype(np.float32)


def _stored(column: Any) -> Any:
    return getattr(column, "storage", column)  # of an extension type, such as Hugging Face's Array2D


def _storage(kind: Any) -> Any:
    return getattr(kind, "storage_type", kind)


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _is_file(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_struct(kind)) and {"bytes", "path"} <= {field.name for field in kind}
