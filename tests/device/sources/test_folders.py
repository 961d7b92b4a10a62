"""A folder of images per class: what is a class, and how it is numbered."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from read_refused import refused

from edgefl_device.sources import read, read_splits


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (3, 2), color: object = (10, 20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)  # type: ignore[arg-type]


def test_a_folder_of_images_per_class(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "b.png")
    save(tmp_path / "cat" / "a.png", color=(1, 2, 3))
    data = read(tmp_path)
    assert data.features.shape == (2, 3, 2, 3)
    assert data.features[0, :, 0, 0].tolist() == [1, 2, 3]
    assert data.labels.tolist() == [0, 1]
    assert data.names == {0: "cat", 1: "dog"}


def test_folders_that_are_numbers_have_them_as_labels(tmp_path: Path) -> None:
    for name in ("0", "2", "10"):
        save(tmp_path / "train" / name / "a.png", "L", color=int(name))
    save(tmp_path / "test" / "10" / "a.png", "L", color=7)
    splits = read_splits(tmp_path)
    assert splits.train.features[:, 0, 0, 0].tolist() == [0, 2, 10]
    assert splits.train.labels.tolist() == [0, 2, 10]
    assert splits.train.names == {0: "0", 2: "2", 10: "10"}
    assert splits.test is not None and splits.test.labels.tolist() == [10]
    save(tmp_path / "train" / "02" / "a.png")
    assert refused(tmp_path).endswith("two folders are the same number: 0, 02, 10, 2")


def test_training_and_test_images_are_numbered_together(tmp_path: Path) -> None:
    save(tmp_path / "train" / "cat" / "a.png")
    save(tmp_path / "train" / "dog" / "a.png")
    save(tmp_path / "test" / "bird" / "a.png")
    save(tmp_path / "test" / "dog" / "a.png")
    splits = read_splits(tmp_path)
    assert splits.test is not None
    assert splits.train.names == splits.test.names == {0: "bird", 1: "cat", 2: "dog"}
    assert splits.train.labels.tolist() == [1, 2]
    assert splits.test.labels.tolist() == [0, 2]


def test_a_folder_val_is_for_testing_where_there_is_no_other(tmp_path: Path) -> None:
    save(tmp_path / "train" / "cat" / "a.png")
    save(tmp_path / "val" / "cat" / "a.png", color=(1, 1, 1))
    test = read_splits(tmp_path).test
    assert test is not None and test.features.max() == 1
    save(tmp_path / "test" / "cat" / "a.png", color=(2, 2, 2))
    test = read_splits(tmp_path).test
    assert test is not None and test.features.max() == 2


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    save(tmp_path / "car" / "a.png")
    save(tmp_path / "train" / "a.png")
    assert read(tmp_path).names == {0: "car", 1: "train"}


def test_a_folder_without_images_is_no_class(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "a.png")
    save(tmp_path / "dog" / "a.png")
    for name in (".git", "@eaDir", "__MACOSX", "$RECYCLE.BIN", "lost+found"):
        save(tmp_path / name / "a.png")
    (tmp_path / "bird").mkdir()
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "cat" / "._a.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"\xd0\xcf")
    splits = read_splits(tmp_path)
    assert splits.train.names == {0: "cat", 1: "dog"}
    assert splits.notes == ()


def test_files_that_are_no_images_of_a_class_are_counted(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "a.png")
    save(tmp_path / "b.png")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    assert read_splits(tmp_path).notes == (
        f"passed over 2 files that are no images of a class, such as {tmp_path / 'b.png'}",
    )


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    assert "holds no data that is known" in refused(tmp_path)
    (tmp_path / "cat").mkdir()
    assert "no images or sounds in its 1 folders" in refused(tmp_path)
    save(tmp_path / "cat" / "a.png")
    save(tmp_path / "cat" / "b.png", size=(4, 4))
    assert refused(tmp_path).endswith("b.png is 4x4; the first image is 3x2")
    (tmp_path / "cat" / "b.png").write_bytes(b"no image")
    assert "b.png cannot be read as an image" in refused(tmp_path)
    (tmp_path / "cat" / "b.png").unlink()
    (tmp_path / "cat" / "b.tif").write_bytes(b"II*\0")
    assert refused(tmp_path).endswith("b.tif is of a kind of image that is not read")
    (tmp_path / "cat" / "b.tif").unlink()
    save(tmp_path / "cat" / "more" / "a.png")
    assert refused(tmp_path).endswith("cat is a folder of folders; expected one of images or sounds")
