"""Which reader a source wants."""

from __future__ import annotations

from pathlib import Path

from edgefl.errors import DataError
from edgefl_device.data.dataset import Dataset, Splits
from edgefl_device.sources import folders, idx, named, npz, tables
from edgefl_device.sources.known import FORMATS


def read_splits(source: str | Path, *, label: str | None = None) -> Splits:
    """Training examples, and test examples where the source has them. Raises DataError with one clear line.

    `label` names the label's column of a table.

    npz                 `x` and `y` (also features, images, data; labels, targets), a test split as `x_test`, `y_test`;
                        texts in `classes` name labels 0, 1, ...;
                        or `jpeg`, `offset`, `label`: image i is the JPEG file jpeg[offset[i]:offset[i + 1]]
    IDX                 a folder as MNIST comes (train-images-idx3-ubyte[.gz] ...), or one images file with its
                        labels file beside it
    CSV, Parquet        one example per row; the label's column is called label, y, target or class, else is the last;
                        or a folder with train.csv and test.csv, train-*.parquet and test-*.parquet
    saved by datasets   a folder as Hugging Face's save_to_disk writes it
    folder              train.npz and test.npz; or one folder of images or WAV files per class, perhaps inside
                        train/ and test/: see `folders.py` for what is a class, `images.py` for pixels, `sounds.py`
    "digits"            scikit-learn's 1,797 images, float32 in 0..1, [1, 8, 8]; every fifth is for testing
    """
    path = Path(source)
    try:
        if str(source) == "digits" and not path.exists():
            return named.digits()
        splits = _read(path, label)
    except (OSError, ValueError) as error:  # ValueError: a NUL in a path
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except MemoryError as error:
        raise DataError(f"{path} does not fit in memory", hint="give the device less data") from error
    _check_examples(splits.train, str(path))
    if splits.test is not None:
        _check_examples(splits.test, str(path))
    return splits


def _check_examples(part: Dataset, where: str) -> None:
    """Raise DataError unless each example has a label; what they are is for the contract."""
    features, labels = part.features, part.labels
    if features.ndim == 0 or labels.ndim == 0:
        raise DataError(f"{where}: features and labels must be arrays with one entry per example")
    if len(features) != len(labels):
        raise DataError(
            f"{where}: {len(features)} examples but {len(labels)} labels", hint="every example needs exactly one label"
        )
    if len(features) and not (features.nbytes and labels.nbytes):
        raise DataError(
            f"{where}: {len(features)} examples of nothing: an example has shape {list(features.shape[1:])}"
        )


def _read(path: Path, label: str | None) -> Splits:
    if not path.exists():
        raise DataError(f"no data at {path}", hint=f"give {FORMATS}")
    if (of_table := tables.read_tables(path, label)) is not None:
        return of_table
    if label is not None:
        raise DataError(f"{path} has no column {label!r}: it is no table", hint="leave out --label")
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder", hint=f"give {FORMATS}")
    if path.suffix == ".npz":
        return npz.read_npz(path)
    if "idx" in path.name or path.suffix == ".idx":
        return Splits(idx.read_pair(path))
    raise DataError(f"{path}: unknown data format", hint=f"give {FORMATS}")


def _folder(path: Path) -> Splits:
    if images := idx.find_images(path, "train"):
        test = idx.find_images(path, "t10k") or idx.find_images(path, "test")
        return Splits(idx.read_pair(images), idx.read_pair(test) if test else None)
    if (path / "train.npz").is_file():
        train, test_file = npz.read_npz(path / "train.npz"), path / "test.npz"
        return Splits(train.train, npz.read_npz(test_file).train if test_file.is_file() else train.test)
    return folders.read_folders(path)
