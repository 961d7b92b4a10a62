"""Pictures of a run for a person: sheets of images as PNG files."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgefl.errors import InputError
from edgefl.files import write_atomic
from edgefl.method import Sheet
from edgefl.tensors import Array

Picture = npt.NDArray[np.uint8]  # [height, width, 3]

SIDE = 64  # pixels of one image, about; it is magnified by a whole number
CAPTION = 12


def write_pictures(folder: Path, sheets: Mapping[str, Sheet]) -> None:
    """Write FOLDER/NAME.png for each sheet. Raises InputError without the pillow package."""
    for name, sheet in sheets.items():
        folder.mkdir(exist_ok=True)
        write_atomic(folder / f"{name}.png", grid(sheet))


def grid(sheet: Sheet) -> bytes:
    """The images beside each other, as PNG."""
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise InputError("pictures need the pillow package", hint="pip install 'edgefl[aggregator]'") from error
    pictures = [_picture(image) for image in sheet.images]
    height, width = pictures[0].shape[:2]
    columns = sheet.columns or math.ceil(math.sqrt(len(pictures)))
    captions = sheet.captions or ("",) * len(pictures)
    caption = CAPTION if any(captions) else 0
    rows = math.ceil(len(pictures) / columns)
    paper = Image.new("RGB", (columns * (width + 2), rows * (height + 2 + caption)), "white")
    draw = ImageDraw.Draw(paper)
    for i, (picture, text) in enumerate(zip(pictures, captions, strict=True)):
        left, top = (i % columns) * (width + 2), (i // columns) * (height + 2 + caption)
        paper.paste(Image.fromarray(picture), (left, top))
        draw.text((left, top + height), text, fill="black")
    data = io.BytesIO()
    paper.save(data, "PNG")
    return data.getvalue()


def _picture(image: Array) -> Picture:
    """One image in colour, magnified."""
    planes = image if image.ndim == 3 else image[None]
    colour = planes if len(planes) == 3 else np.repeat(planes[:1], 3, axis=0)
    times = max(1, SIDE // colour.shape[1])
    return np.ascontiguousarray(colour.transpose(1, 2, 0).repeat(times, 0).repeat(times, 1), dtype=np.uint8)
