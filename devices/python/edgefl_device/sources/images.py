"""Image files as arrays, whatever their format: uint8 [n, channels, height, width]."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import AnyArray, check_size

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP")  # by content: a .png that is PostScript runs ghostscript


def decode(files: Sequence[tuple[str, bytes | Path]]) -> AnyArray:
    """Images as uint8 [n, channels, height, width]; channels is 1 for grey, 3 for colour."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading images needs Pillow", hint="pip install 'edgefl[device]'") from error
    features: AnyArray | None = None  # filled in place: a list of arrays would double the memory
    mode = ""
    for i, (name, content) in enumerate(files):
        if isinstance(content, Path) and not content.is_file():
            raise DataError(f"{name} cannot be read as an image: it is no file")
        with _image_damage(name), Image.open(_opened(content), formats=FORMATS) as image:
            mode = mode or ("L" if image.mode in ("1", "L") else "RGB")  # the first image decides for all
            shape = (1 if mode == "L" else 3, image.height, image.width)
            if features is None:
                check_size(len(files) * math.prod(shape), f"{name}, with {len(files) - 1} of its size,")
                features = np.empty((len(files), *shape), np.uint8)
            if shape != features.shape[1:]:  # before anything is unpacked
                raise DataError(
                    f"{name} is {_size(shape)}; the first image is {_size(features.shape[1:])}",
                    hint="resize the images to one size",
                )
            pixels = np.asarray(image.convert(mode))
            features[i] = pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
    assert features is not None
    return features


def _opened(content: bytes | Path) -> io.BytesIO | Path:
    return io.BytesIO(content) if isinstance(content, bytes) else content


@contextmanager
def _image_damage(name: str) -> Iterator[None]:
    """What cannot be read in the block becomes a DataError that names the image; Pillow's warnings do, of a bomb."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name} has too many pixels: {error}", hint=f"resize it; at most {Image.MAX_IMAGE_PIXELS} pixels are read"
        ) from error
    except DataError:
        raise
    except Exception as error:  # its readers of many formats raise what they like
        raise DataError(f"{name} cannot be read as an image: {str(error) or type(error).__name__}") from error


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]}"
