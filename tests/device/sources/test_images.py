"""What becomes of pixels: depth, rotation, transparency, palettes and inks, each on purpose."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from read_refused import refused

from edgefl_device.sources import read, read_splits


def put(path: Path, image: Image.Image, **options: object) -> Path:
    """Save an image of class 0."""
    (path / "0").mkdir(exist_ok=True)
    image.save(path / "0" / f"{len(list((path / '0').iterdir()))}.{options.pop('kind', 'png')}", **options)  # type: ignore[arg-type]
    return path


def pixel(path: Path, image: Image.Image, **options: object) -> list[float]:
    """The channels of the first pixel, as a device has them."""
    return read(put(path, image, **options)).features[0, :, 0, 0].tolist()


@pytest.mark.parametrize("kind", ["png", "pgm"])
def test_16_bits_are_scaled_by_their_depth(tmp_path: Path, kind: str) -> None:
    values = np.array([[0, 1, 256, 65535]], np.uint16)
    features = read(put(tmp_path, Image.fromarray(values), kind=kind)).features
    assert features.dtype == np.float32 and features.shape == (1, 1, 1, 4)
    np.testing.assert_allclose(features[0, 0], values / 65535, rtol=1e-6)


def test_10_bits_are_scaled_by_theirs(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.pgm").write_bytes(b"P5 3 1 1023\n" + np.array([0, 341, 1023], ">u2").tobytes())
    np.testing.assert_allclose(read(tmp_path).features.reshape(3), [0, 1 / 3, 1], rtol=1e-4)


def test_one_deep_image_makes_all_of_them_floats(tmp_path: Path) -> None:
    put(tmp_path, Image.new("L", (1, 1), 51))
    put(tmp_path, Image.fromarray(np.array([[13107]], np.uint16)))
    np.testing.assert_allclose(read(tmp_path).features.reshape(2), [0.2, 0.2], rtol=1e-6)
    put(tmp_path, Image.new("RGB", (1, 1), (255, 0, 51)))
    np.testing.assert_allclose(read(tmp_path).features[1:].reshape(2, 3), [[0.2, 0.2, 0.2], [1, 0, 0.2]], rtol=1e-6)


def test_one_image_in_colour_makes_all_of_them_colour_also_in_the_test_part(tmp_path: Path) -> None:
    for part, image in (
        ("train", Image.new("L", (1, 1), 9)),
        ("train", Image.new("RGB", (1, 1), (1, 2, 3))),
        ("test", Image.new("L", (1, 1), 8)),
    ):
        (tmp_path / part).mkdir(exist_ok=True)
        put(tmp_path / part, image)
    splits = read_splits(tmp_path)
    assert splits.train.features.reshape(2, 3).tolist() == [[9, 9, 9], [1, 2, 3]]
    assert splits.test is not None and splits.test.features.reshape(1, 3).tolist() == [[8, 8, 8]]
    assert splits.notes == ("2 grey images are read as colour, since others are in colour",)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_a_photo_stands_upright(tmp_path: Path, kind: str) -> None:
    """Orientation 6: the camera lay on its side, and the picture's left edge is its top."""
    lying = Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), 24, 1).repeat(8, 0))  # [16, 24]
    exif = Image.Exif()
    exif[0x112] = 6
    upright = read(put(tmp_path, lying, kind=kind, exif=exif)).features[0, 0]
    assert upright.shape == (24, 16)
    assert upright[:, 0].min() > 250 and upright[:, -1].max() < 5  # what was below is left


def test_upright_and_lying_photos_of_one_camera_are_not_of_one_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 8
    put(tmp_path, Image.new("L", (3, 2)), exif=exif)
    put(tmp_path, Image.new("L", (2, 3)))
    assert read(tmp_path).features.shape == (2, 1, 3, 2)
    put(tmp_path, Image.new("L", (3, 2)))
    assert refused(tmp_path).endswith("2.png is 3x2; the first image is 2x3")


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    """Under it there often is black, which a program that drops the alpha would see as ink."""
    clear, half = (0, 0, 0, 0), (255, 0, 0, 128)
    assert pixel(tmp_path, Image.new("RGBA", (1, 1), clear)) == [255, 255, 255]
    put(tmp_path, Image.new("RGBA", (1, 1), half))
    splits = read_splits(tmp_path)
    assert splits.train.features[1].reshape(3).tolist() == [255, 127, 127]
    assert splits.notes == ("2 images are transparent in places: white there",)


def test_grey_with_transparency_stays_grey(tmp_path: Path) -> None:
    assert pixel(tmp_path, Image.new("LA", (1, 1), (40, 255))) == [40]
    put(tmp_path, Image.new("LA", (1, 1), (40, 0)))
    put(tmp_path, Image.new("L", (1, 1), 7), transparency=7)
    assert read(tmp_path).features.reshape(3).tolist() == [40, 255, 255]


def test_palettes_are_their_colours(tmp_path: Path) -> None:
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert pixel(tmp_path, image) == [10, 20, 30]
    put(tmp_path, image, transparency=1)
    assert read(tmp_path).features[1].reshape(3).tolist() == [255, 255, 255]


def test_a_palette_of_which_only_greys_are_used_is_grey(tmp_path: Path) -> None:
    image = Image.new("P", (1, 1), 1)
    image.putpalette([10, 20, 30, 7, 7, 7])
    assert pixel(tmp_path, image) == [7]


def test_a_palette_is_bounded_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFL_MAX_ARRAY_MB", "1")
    put(tmp_path, Image.new("P", (1000, 1000)))
    assert "0.png would be 3 MB in memory; at most 1 are unpacked" in refused(tmp_path)


def test_black_and_white(tmp_path: Path) -> None:
    assert pixel(tmp_path, Image.new("1", (1, 1), 1)) == [255]


def test_inks_become_light(tmp_path: Path) -> None:
    """All cyan, no other ink; a JPEG of Adobe's keeps it inverted."""
    red, green, blue = pixel(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), kind="jpg")
    assert red < 5 and green > 250 and blue > 250


def test_the_first_frame_of_a_film(tmp_path: Path) -> None:
    film = [Image.new("L", (2, 2), grey) for grey in (50, 200)]
    assert pixel(tmp_path, film[0], kind="gif", save_all=True, append_images=film[1:]) == [50]


def test_pixels_of_which_nobody_says_the_range_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.pgm").write_bytes(b"Pf 1 1 -1.0\n" + np.float32([0.5]).tobytes())
    assert refused(tmp_path).endswith("a.pgm: its pixels are F, which is not read")
    data = io.BytesIO()
    Image.fromarray(np.array([[7]], np.uint16)).save(data, "png", transparency=7)
    (tmp_path / "0" / "a.pgm").unlink()
    (tmp_path / "0" / "a.png").write_bytes(data.getvalue())
    assert refused(tmp_path).endswith("a.png has 16 bits and transparency, which is not read")
