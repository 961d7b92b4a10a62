"""Tables that pyarrow reads: Parquet files, and folders that Hugging Face's `datasets` saved (save_to_disk).

The library that wrote such a folder is not needed, and nothing is ever downloaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edgefl.errors import DataError
from edgefl.files import from_json, read_bytes
from edgefl_device.data.dataset import Dataset
from edgefl_device.sources.column_features import BATCH_ROWS, Columns
from edgefl_device.sources.columns import to_dataset

SUFFIX = ".parquet"
STATE, PARTS = "state.json", "dataset_dict.json"  # of a data set, of several that belong together
# Of 100,000 rows of one list of 64, 11 MB beside the array instead of 72; a table of 64 columns has 64 pages, 122 MB.
SPARING = {"pre_buffer": False, "buffer_size": 2**16}
MOST_JSON_BYTES = 2**20

_Read = tuple[Dataset, tuple[str, ...]]


def read_parquet(paths: Sequence[Path], label: str | None) -> _Read:
    """The rows of files of one schema, one after the other, and notes. Raises DataError."""
    where = str(paths[0])
    with _damage(where), ExitStack() as opened:
        import pyarrow.parquet as pq

        files = [opened.enter_context(pq.ParquetFile(path, **SPARING)) for path in paths]
        batches = itertools.chain.from_iterable(file.iter_batches(BATCH_ROWS, use_threads=False) for file in files)
        rows = sum(file.metadata.num_rows for file in files)
        _check_alike(paths, [file.schema_arrow for file in files])
        return to_dataset(Columns(where, files[0].schema_arrow, rows, _size(paths), batches), label)


class _Shard(msgspec.Struct, frozen=True):
    filename: str


class _State(msgspec.Struct, frozen=True, rename={"files": "_data_files", "indices": "_indices_data_files"}):
    """What is read of state.json."""

    files: tuple[_Shard, ...]
    indices: Any = None


class _Parts(msgspec.Struct, frozen=True):
    splits: tuple[str, ...]


def saved_parts(path: Path) -> Mapping[str, Path]:
    """The folders of a saved data set by name: `train` alone, or those of a DatasetDict; none where `path` is none."""
    if (path / STATE).is_file():
        return {"train": path}
    if not (path / PARTS).is_file():
        return {}
    names = _json(path / PARTS, _Parts).splits
    return {name: path / _plain(name, path / PARTS) for name in names}


def read_saved(path: Path, label: str | None) -> _Read:
    """The rows of a saved data set, and notes. Raises DataError."""
    state = _json(path / STATE, _State)
    if state.indices:
        raise DataError(f"{path}: its rows are in another order than its files", hint="flatten_indices() and save it")
    paths = [path / _plain(shard.filename, path / STATE) for shard in state.files]
    if not paths:
        raise DataError(f"{path}: no examples")
    with _damage(str(path)), ExitStack() as opened:
        import pyarrow as pa

        readers = [pa.ipc.open_stream(opened.enter_context(pa.memory_map(str(file)))) for file in paths]
        _check_alike(paths, [reader.schema for reader in readers])
        batches = [batch for reader in readers for batch in reader]  # mapped, not read
        for batch in batches:
            batch.validate(full=True)  # damage that Arrow would follow out of the file, or end the process at
        pieces = (batch.slice(start, BATCH_ROWS) for batch in batches for start in range(0, batch.num_rows, BATCH_ROWS))
        rows = sum(batch.num_rows for batch in batches)
        return to_dataset(Columns(str(path), readers[0].schema, rows, _size(paths), pieces), label)


def _check_alike(paths: Sequence[Path], schemas: Sequence[Any]) -> None:
    for path, schema in zip(paths, schemas, strict=True):
        if not schema.equals(schemas[0]):
            raise DataError(f"{path} has other columns than {paths[0].name}")


def _json(path: Path, kind: type[Any]) -> Any:
    try:
        return from_json(read_bytes(path, MOST_JSON_BYTES, error=DataError), kind)
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _plain(name: str, where: Path) -> str:
    if Path(name).name != name or name in ("", ".", ".."):
        raise DataError(f"{where} names {name!r}, which is no file beside it")
    return name


def _size(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """What pyarrow raises becomes a DataError; so does its absence."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise DataError(f"reading {where} needs pyarrow", hint="pip install 'edgefl[tables]'") from error
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # many kinds, and bare OSError for damage
        raise DataError(f"{where} cannot be read: {str(error) or type(error).__name__}") from error
