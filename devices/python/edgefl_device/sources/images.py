"""Image files as arrays, whatever their format: [n, channels, height, width].

What all images of a source become is decided once, from all of them: colour where one is in colour, float32 in 0..1
where one has 16 bits (value / 65535, others / 255), else uint8. Pillow reads 16-bit colour by its upper 8 bits.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import AnyArray, check_size

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".webp")
UNREAD = (".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".dcm")  # images, and no accident in a folder
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP")  # by content: a .png that is PostScript runs ghostscript

_DEEP = ("I", "I;16", "I;16B", "I;16L")  # grey of 16 bits; Pillow scales other depths of PGM to 16 or 8
_GREY = ("1", "L", "LA", *_DEEP)
_COLOUR = ("RGB", "RGBA", "CMYK")  # CMYK is a JPEG's, which Pillow knows to be inverted where Adobe wrote it
_PALETTE = ("P", "PA")
_ALPHA = ("LA", "PA", "RGBA")

File = tuple[str, "bytes | Path"]  # what to call it, and its content or where that is


@dataclass(frozen=True)
class Form:
    """What all images of a source become, and how many of them change on the way."""

    channels: int
    deep: bool
    grey_made_colour: int
    made_opaque: int

    @property
    def notes(self) -> tuple[str, ...]:
        said = []
        if self.grey_made_colour:
            said.append(f"{self.grey_made_colour} grey images are read as colour, since others are in colour")
        if self.made_opaque:
            said.append(f"{self.made_opaque} images are transparent in places: white there")
        return tuple(said)


def read(parts: Sequence[Sequence[File]]) -> tuple[list[tuple[AnyArray, AnyArray | None]], tuple[str, ...]]:
    """Each part's images, with None, since none is shorter than another; and notes. All parts have one form."""
    form = survey([file for part in parts for file in part])
    return [(decode(part, form), None) for part in parts], form.notes


def survey(files: Sequence[File]) -> Form:
    """Look at every image, of most at their headers only. Raises DataError, its line beginning with an image."""
    grey = opaque = deep = 0
    for name, content in files:
        with _opened(name, content) as image:
            deep += image.mode in _DEEP
            grey += image.mode in _GREY or (image.mode in _PALETTE and _has_grey_palette(name, image))
            opaque += not _is_transparent(image)
            if image.mode not in _GREY + _COLOUR + _PALETTE:
                raise DataError(f"{name}: its pixels are {image.mode}, which is not read", hint="convert it to PNG")
            if image.mode in _DEEP and _is_transparent(image):
                raise DataError(f"{name} has 16 bits and transparency, which is not read", hint="make it opaque")
    channels = 1 if grey == len(files) else 3
    return Form(channels, deep > 0, grey if channels == 3 else 0, len(files) - opaque)


def decode(files: Sequence[File], form: Form) -> AnyArray:
    """The images, upright as their cameras say (EXIF), the first frame of each. Raises DataError unless of one size."""
    features: AnyArray | None = None  # filled in place: a list of arrays would double the memory
    dtype = np.dtype(np.float32 if form.deep else np.uint8)
    for i, (name, content) in enumerate(files):
        with _opened(name, content) as image:
            area = image.width * image.height
            if features is None:
                size_bytes = len(files) * form.channels * area * dtype.itemsize
                check_size(size_bytes, f"{name}, with {len(files) - 1} of its size,")
            elif area != math.prod(features.shape[2:]):  # before anything is unpacked
                raise _other_size(name, (image.width, image.height), features)
            pixels = _pixels(image, form)
            if features is None:
                features = np.empty((len(files), *pixels.shape), dtype)
            if pixels.shape != features.shape[1:]:
                raise _other_size(name, (pixels.shape[2], pixels.shape[1]), features)
            features[i] = pixels
    assert features is not None, "no files"
    return features


def _pixels(image: Image, form: Form) -> AnyArray:
    """[channels, height, width]."""
    from PIL import ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in _DEEP:
        deep = np.asarray(image, np.float32)[None] / np.float32(65535)
        return np.broadcast_to(deep, (form.channels, *deep.shape[1:]))
    if _is_transparent(image):
        image = _on_white(image)
    pixels = np.asarray(image.convert("L" if form.channels == 1 else "RGB"))
    pixels = pixels[None] if form.channels == 1 else pixels.transpose(2, 0, 1)
    return pixels / np.float32(255) if form.deep else pixels


def _on_white(image: Image) -> Image:
    """As a page shows it. What lies under transparency is no part of a picture: often it is black, as ink is."""
    from PIL import Image

    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _is_transparent(image: Image) -> bool:
    return image.mode in _ALPHA or "transparency" in image.info


def _has_grey_palette(name: str, image: Image) -> bool:
    """Whether the colours that it uses are all grey: its palette may hold others. Here it is unpacked."""
    check_size(3 * image.width * image.height, name)
    pixels = np.asarray(_on_white(image) if _is_transparent(image) else image.convert("RGB"))
    return bool((pixels == pixels[..., :1]).all())


@contextmanager
def _opened(name: str, content: bytes | Path) -> Iterator[Image]:
    """An image whose header is read. What cannot be read, there or in the block, becomes a DataError that names it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading images needs Pillow", hint="pip install 'edgefl[images]'") from error
    if isinstance(content, Path) and not content.is_file():
        raise DataError(f"{name} cannot be read as an image: it is no file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name} has too many pixels: {error}", hint=f"resize it; at most {Image.MAX_IMAGE_PIXELS} pixels are read"
        ) from error
    except DataError:
        raise
    except Exception as error:  # its readers of many formats raise what they like
        raise DataError(f"{name} cannot be read as an image: {str(error) or type(error).__name__}") from error


def _other_size(name: str, size: tuple[int, int], features: AnyArray) -> DataError:
    return DataError(
        f"{name} is {size[0]}x{size[1]}; the first image is {features.shape[3]}x{features.shape[2]}",
        hint="resize the images to one size",
    )
