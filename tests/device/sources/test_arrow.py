"""Parquet files, and folders as Hugging Face's `datasets` saves them, written here with pyarrow alone."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from read_refused import refused
from waves import wav

from edgefl.errors import DataError
from edgefl_device.sources import read, read_splits

PETS = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["dog", "cat"]}}}}).encode()}


def parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def saved(path: Path, *shards: pa.Table, **state: object) -> Path:
    """As Dataset.save_to_disk."""
    path.mkdir(parents=True)
    names = [f"data-{i:05}-of-{len(shards):05}.arrow" for i in range(len(shards))]
    for name, table in zip(names, shards, strict=True):
        with pa.OSFile(str(path / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], **state}))
    (path / "dataset_info.json").write_text("{}")
    return path


def packed(*greys: int) -> pa.Array:
    """Images as the library packs them."""
    images = []
    for grey in greys:
        data = io.BytesIO()
        Image.new("L", (3, 2), grey).save(data, "png")
        images.append({"bytes": data.getvalue(), "path": None})
    return pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def test_columns_of_numbers_are_what_they_are_in_a_csv(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", a=[1.5, 2.5], species=["cat", "dog"], b=[3, 4], c=[True, False])
    data = read(path, label="species")
    assert data.features.dtype == np.float32 and data.features.tolist() == [[1.5, 3, 1], [2.5, 4, 0]]
    assert data.labels.tolist() == [0, 1] and data.names == {0: "cat", 1: "dog"}
    path = parquet(tmp_path / "a.parquet", label=[7, 8], pixel=pa.array([200, 0], pa.uint8()))
    data = read(path)
    assert data.features.dtype == np.float32 and data.features.tolist() == [[200], [0]]
    assert data.labels.dtype == np.int64 and data.names is None


def test_many_rows(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((5000, 3)).astype(np.float32)
    path = parquet(tmp_path / "a.parquet", **{f"c{i}": x[:, i] for i in range(3)}, y=np.arange(5000.0) / 2)
    data = read(path)
    np.testing.assert_array_equal(data.features, x)
    np.testing.assert_array_equal(data.labels, np.arange(5000) / 2)


@pytest.mark.parametrize("kind", [pa.list_(pa.uint8()), pa.large_list(pa.uint8()), pa.list_(pa.uint8(), 2)], ids=str)
def test_a_column_of_lists(tmp_path: Path, kind: pa.DataType) -> None:
    data = read(parquet(tmp_path / "a.parquet", x=pa.array([[1, 2], [3, 255]], kind), label=[0, 1]))
    assert data.features.dtype == np.uint8 and data.features.tolist() == [[1, 2], [3, 255]]


def test_lists_of_lists(tmp_path: Path) -> None:
    rows = np.arange(12.0).reshape(2, 3, 2)
    data = read(parquet(tmp_path / "a.parquet", x=rows.tolist(), label=[0, 1]))
    assert data.features.dtype == np.float32
    np.testing.assert_array_equal(data.features, rows)


def test_images_and_names_as_hugging_face_writes_them(tmp_path: Path) -> None:
    table = pa.table({"image": packed(5, 9), "label": [1, 0]}).replace_schema_metadata(PETS)
    pq.write_table(table, tmp_path / "a.parquet")
    data = read(tmp_path / "a.parquet")
    assert data.features.shape == (2, 1, 2, 3) and data.features[:, 0, 0, 0].tolist() == [5, 9]
    assert data.labels.tolist() == [1, 0] and data.names == {0: "dog", 1: "cat"}


def test_parts_in_files_of_their_own(tmp_path: Path) -> None:
    """As data sets lie on Hugging Face's hub; words of both parts are numbered together."""
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", x=[1.0], label=["dog"])
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", x=[2.0], label=["bird"])
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", x=[3.0], label=["cat"])
    splits = read_splits(tmp_path)
    assert splits.train.features.tolist() == [[1], [2]] and splits.train.labels.tolist() == [2, 0]
    assert splits.test is not None and splits.test.labels.tolist() == [1]
    assert splits.train.names == splits.test.names == {0: "bird", 1: "cat", 2: "dog"}
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", z=[2.0], label=["bird"])
    assert refused(tmp_path).endswith("has other columns than train-00000-of-00002.parquet")


def test_a_saved_data_set(tmp_path: Path) -> None:
    first, second = (pa.table({"x": [[float(i)]], "label": [i]}).replace_schema_metadata(PETS) for i in (0, 1))
    data = read(saved(tmp_path / "pets", first, second))
    assert data.features.tolist() == [[0], [1]]
    assert data.labels.tolist() == [0, 1] and data.names == {0: "dog", 1: "cat"}


def test_saved_parts(tmp_path: Path) -> None:
    saved(tmp_path / "train", pa.table({"x": [1.0], "label": ["cat"]}))
    saved(tmp_path / "validation", pa.table({"x": [2.0], "label": ["cat"]}))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    splits = read_splits(tmp_path)
    assert splits.test is not None and splits.test.features.tolist() == [[2]]
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["validation"]}')
    assert refused(tmp_path).endswith("has no part 'train'; its parts are validation")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["../train"]}')
    assert "names '../train', which is no file beside it" in refused(tmp_path)


def test_a_saved_data_set_whose_rows_are_elsewhere(tmp_path: Path) -> None:
    table = pa.table({"x": [1.0], "label": [0]})
    shuffled = saved(tmp_path / "a", table, _indices_data_files=[{"filename": "indices.arrow"}])
    assert refused(shuffled).endswith("its rows are in another order than its files")
    away = saved(tmp_path / "b", table)
    (away / "state.json").write_text('{"_data_files": [{"filename": "../a/data-00000-of-00001.arrow"}]}')
    assert "which is no file beside it" in refused(away)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [1]}, "1 columns; expected features and a label"),
        ({"x": [1.0, None], "label": [0, 1]}, "row 2: 'x' is missing"),
        ({"x": [1.0, 2.0], "label": [None, "cat"]}, "row 1: 'label' is missing"),
        ({"x": ["a"], "label": [0]}, "column 'x' holds string; expected numbers"),
        ({"x": [[1]], "z": ["a"], "label": [0]}, "column 'z' holds string; expected numbers"),
        ({"x": [[[1], [1, 2]]], "label": [0]}, "from row 1 on: 'x' has lists of 1 and of 2 within its lists"),
        ({"x": [[1, None]], "label": [0]}, "from row 1 on: 'x' has lists with missing values"),
        ({"x": [["a"]], "label": [0]}, "column 'x' holds list<element: string>; expected numbers"),
        ({"x": [1], "label": [[0]]}, "the label 'label' holds list<element: int64>; expected numbers or words"),
        ({"x": [1, 2], "label": ["1", "cat"]}, "row 2: the label 'cat' is no number, as those before it are"),
        ({"x": [1], "y": [1], "label": [1]}, "each of y, label could be the label"),
        ({"x": pa.array([], pa.int64()), "label": pa.array([], pa.int64())}, "no examples"),
        ({"x": [{"bytes": None, "path": "/etc/passwd"}], "label": [0]}, "row 1: its content is in another file"),
        ({"x": [{"bytes": b"no image", "path": "a.png"}], "label": [0]}, "row 1 cannot be read as an image"),
    ],
)
def test_what_is_no_feature_or_label(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    if columns.get("x") == [{"bytes": None, "path": "/etc/passwd"}]:
        columns = {**columns, "x": pa.array(columns["x"], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    assert message in refused(parquet(tmp_path / "a.parquet", **columns))


def test_shorter_lists_are_filled_up(tmp_path: Path) -> None:
    """Also where the longest comes in a later batch."""
    splits = read_splits(parquet(tmp_path / "a.parquet", x=[[1]] * 1024 + [[2, 3], []], label=[0] * 1026))
    assert splits.train.features[[0, 1024, 1025]].tolist() == [[1, 0], [2, 3], [0, 0]]
    assert splits.train.lengths is not None and splits.train.lengths[[0, 1024, 1025]].tolist() == [1, 2, 0]
    assert splits.notes == ("1025 examples are shorter than the longest, of 2: zeros behind them",)


def test_columns_that_are_no_row_of_numbers_are_features_by_name(tmp_path: Path) -> None:
    """As of a model that reads tokens and says how old their author is."""
    data = read(parquet(tmp_path / "a.parquet", age=[20, 30], tokens=[[1, 2], [3]], seen=[[1, 1], [1]], label=[0, 1]))
    assert data.features.tolist() == [[1, 2], [3, 0]] and data.features.dtype == np.int64
    assert {name: array.tolist() for name, array in data.others.items()} == {
        "tokens": [[1, 2], [3, 0]],
        "seen": [[1, 1], [1, 0]],
        "age": [[20], [30]],
    }
    assert data.lengths is not None and data.lengths.tolist() == [2, 1]


def test_lists_of_another_width_far_below(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", x=[[[1]]] * 1024 + [[[1, 2]]], label=[0] * 1025)
    assert "from row 1025 on: 'x' has lists of shape [2]; before them [1]" in refused(path)


def test_a_label_that_is_no_class(tmp_path: Path) -> None:
    table = pa.table({"x": [1.0, 2.0], "label": [1, -1]}).replace_schema_metadata(PETS)
    pq.write_table(table, tmp_path / "a.parquet")
    assert "row 2: the label -1 is none of the 2 classes" in refused(tmp_path / "a.parquet")


def test_sounds_as_hugging_face_writes_them(tmp_path: Path) -> None:
    content = wav([100, -100])
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"audio": pa.array([{"bytes": content, "path": "a.wav"}], struct), "label": [0]})
    info = {"info": {"features": {"audio": {"_type": "Audio"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "a.parquet")
    np.testing.assert_array_equal(read(tmp_path / "a.parquet").features * 2**15, [[100, -100]])


def test_more_in_memory_than_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFL_MAX_ARRAY_MB", "0")
    path = parquet(tmp_path / "a.parquet", x=[[0] * 1000] * 100, label=[0] * 100)
    assert "MB in memory; at most 0 are unpacked" in refused(path)


def test_damage(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", x=[1.0], label=[0])
    path.write_bytes(path.read_bytes()[:-20])
    assert "a.parquet cannot be read" in refused(path)
    folder = saved(tmp_path / "pets", pa.table({"x": [1.0], "label": [0]}))
    file = folder / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:100])
    assert "pets cannot be read" in refused(folder)
    file.unlink()
    assert "pets cannot be read" in refused(folder)
    (folder / "state.json").write_text("[")
    assert "state.json is damaged: not JSON" in refused(folder)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "a.parquet", x=[1.0], label=[0])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.hint == "pip install 'edgefl[tables]'"
