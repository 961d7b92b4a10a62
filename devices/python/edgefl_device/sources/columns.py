"""A table as Arrow reads it, in batches: one column is the label, the others are the features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import AnyArray, Dataset
from edgefl_device.sources.column_features import Columns, Features, is_number, storage, stored
from edgefl_device.sources.label_column import KNOWN, Labels, find_label


def to_dataset(table: Columns, label: str | None) -> tuple[Dataset, tuple[str, ...]]:
    """The examples, and notes. Raises DataError for a missing value, and for columns that are no features."""
    names: list[str] = table.schema.names
    if len(names) < 2:
        raise DataError(f"{table.where}: {len(names)} columns; expected features and a label")
    at = find_label(names, label, table.where)
    guessed = label is None and names[at].lower() not in KNOWN
    features = Features([name for i, name in enumerate(names) if i != at], table)
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
        columns = [stored(column) for column in batch.columns]
        with np.errstate(over="ignore"):  # infinity is refused with the contract
            labels.add(columns.pop(at), start)
            features.add(columns, start)
        start += batch.num_rows
    if start != table.rows:
        raise DataError(f"{table.where} is damaged: it says {table.rows} rows and has {start}")
    if not start:
        raise DataError(f"{table.where}: no examples")
    values, words = labels.done()
    data, notes = features.done(values, words or _class_names(values, table, names[at]))
    return data, notes + ((f"the label is the last column, {names[at]!r}",) if guessed else ())


class _Labels:
    """Numbers, or words."""

    def __init__(self, field: Any, table: Columns) -> None:
        import pyarrow as pa

        self._table = table
        self._words = Labels()
        kind = storage(field.type)
        self._is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
        if not self._is_text and not is_number(kind):
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


def _class_names(values: AnyArray, table: Columns, label: str) -> dict[int, str] | None:
    """What Hugging Face says that the numbers of a ClassLabel mean. Raises DataError for one that means nothing."""
    names = table.hugging_face.get(label, {}).get("names")
    if not isinstance(names, list):
        return None
    outside = (values < 0) | (values >= len(names))
    if outside.any():
        row = int(outside.argmax())
        raise DataError(
            f"{table.where}, row {row + 1}: the label {values[row]} is none of the {len(names)} classes",
            hint="a part without labels is marked by -1; leave it out" if values[row] == -1 else None,
        )
    return {i: str(name) for i, name in enumerate(names)}
