"""A folder of images per class."""

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
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    data = read(tmp_path)
    assert data.features.shape == (2, 3, 2, 3)
    assert data.features[0, :, 0, 0].tolist() == [1, 2, 3]
    assert data.labels.tolist() == [0, 1]  # cat, dog


def test_numbered_classes_and_grey_images(tmp_path: Path) -> None:
    for name in ("0", "2", "10"):
        save(tmp_path / "train" / name / "a.png", "L", color=int(name))
    save(tmp_path / "test" / "10" / "a.png", "L", color=7)
    splits = read_splits(tmp_path)
    assert splits.train.features[:, 0, 0, 0].tolist() == [0, 2, 10]
    assert splits.train.labels.tolist() == [0, 1, 2]
    assert splits.test is not None and splits.test.labels.tolist() == [2]


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    assert "holds no data that is known" in refused(tmp_path)
    (tmp_path / "cat").mkdir()
    assert "no images in its 1 folders" in refused(tmp_path)
    save(tmp_path / "cat" / "a.png")
    save(tmp_path / "cat" / "b.png", size=(4, 4))
    assert refused(tmp_path).endswith("b.png is 4x4; the first image is 3x2")
    (tmp_path / "cat" / "b.png").write_bytes(b"no image")
    assert "b.png cannot be read as an image" in refused(tmp_path)
