"""Pictures of a CoDream run's dreams, one pair of PNG files per epoch, and the check that they are nobody's images.

RUN_DIR/dreams/epoch-003.png         the dreams, each with the class that its label gives most
RUN_DIR/dreams/epoch-003-path.png    the first of them, from noise to the end
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgefl.aggregator.store import Record
from edgefl.errors import InputError
from edgefl.files import write_atomic
from edgefl.method import State
from edgefl.methods.codream import CoDream
from edgefl.results.report import LIKENESS
from edgefl.tensors import Array

Picture = npt.NDArray[np.uint8]  # [height, width, 3]

SIDE = 64  # pixels of one dream, about; it is magnified by a whole number
CAPTION = 12


class Album:
    """Draws what an epoch dreamed when it is labelled, and says when a dream is too much like an image of a device."""

    def __init__(self, method: CoDream, folder: Path) -> None:
        self._method = method
        self.folder = folder

    def add(self, state: State) -> None:
        """After each durable round. Raises InputError without the pillow package."""
        if state.round == 0 or self._method.alone:
            return
        place = self._method.place(state.round - 1)
        if place.phase != "label":
            return
        labels = state.tensors["labels"]
        captions = [f"{c}: {p:.0%}" for c, p in zip(labels.argmax(1), labels.max(1), strict=True)]
        self.folder.mkdir(exist_ok=True)
        name = f"epoch-{place.epoch:03}"
        dreams = self._method.pixels(state.tensors["dreams"])
        write_atomic(self.folder / f"{name}.png", grid(dreams, captions))
        path = state.tensors["path"]
        write_atomic(self.folder / f"{name}-path.png", grid(path, [""] * len(path), columns=len(path)))

    def warning(self, record: Record) -> str | None:
        """What a person should know of a round's likeness."""
        found = {d: m[LIKENESS] for d, m in record.get("measured", {}).items() if LIKENESS in m}
        if not found or max(found.values()) <= self._method.likeness_limit:
            return None
        device = max(found, key=lambda name: found[name])
        return (
            f"a dream is like an image of {device}: cosine {found[device]:.3f}, over {self._method.likeness_limit:g} "
            "(likeness_limit); more total_variation, less statistics or fewer dream_steps make dreams vaguer"
        )


def grid(images: Array, captions: Sequence[str], columns: int = 0) -> bytes:
    """uint8 images [n, C, H, W] (or [n, H, W]) beside each other, `columns` in a row (0: about a square), as PNG."""
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise InputError("pictures need the pillow package", hint="pip install 'edgefl[aggregator]'") from error
    pictures = [_picture(image) for image in images]
    height, width = pictures[0].shape[:2]
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    caption = CAPTION if any(captions) else 0
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (width + 2), rows * (height + 2 + caption)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, text) in enumerate(zip(pictures, captions, strict=True)):
        left, top = (i % columns) * (width + 2), (i // columns) * (height + 2 + caption)
        sheet.paste(Image.fromarray(picture), (left, top))
        draw.text((left, top + height), text, fill="black")
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()


def _picture(image: Array) -> Picture:
    """One image in colour, magnified."""
    planes = image if image.ndim == 3 else image[None]
    colour = planes if len(planes) == 3 else np.repeat(planes[:1], 3, axis=0)
    times = max(1, SIDE // colour.shape[1])
    return np.ascontiguousarray(colour.transpose(1, 2, 0).repeat(times, 0).repeat(times, 1), dtype=np.uint8)
