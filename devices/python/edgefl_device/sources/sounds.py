"""WAV files as arrays: float32 in -1..1, [n, samples], one channel.

Sounds that are shorter than the longest have silence behind them, and `lengths` says where it begins.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import AnyArray, check_size

SUFFIXES = (".wav",)
UNREAD = (".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff")

File = tuple[str, "bytes | Path"]  # what to call it, and its content or where that is


@dataclass(frozen=True)
class Form:
    """What all sounds of a source have in common."""

    rate_hz: int
    samples: int


def read(parts: Sequence[Sequence[File]]) -> tuple[list[tuple[AnyArray, AnyArray | None]], tuple[str, ...]]:
    """Each part's sounds [n, samples] and their lengths, None where all are as long; and notes.

    Raises DataError, its line beginning with a sound, for one that cannot be read or has another sample rate.
    """
    files = [file for part in parts for file in part]
    form, mixed, shorter = _survey(files)
    notes = []
    if mixed:
        notes.append(f"{mixed} sounds have several channels: their mean is read")
    if shorter:
        notes.append(f"{shorter} sounds are shorter than the longest, of {form.samples} samples: silence behind them")
    return [_decode(part, form) for part in parts], tuple(notes)


def _survey(files: Sequence[File]) -> tuple[Form, int, int]:
    """The form of them all, how many have several channels, and how many are shorter than the longest."""
    lengths, mixed, rate_hz = [], 0, 0
    for name, content in files:
        with _opened(name, content) as sound:
            rate_hz = rate_hz or sound.getframerate()
            if sound.getframerate() != rate_hz:
                raise DataError(
                    f"{name} has {sound.getframerate()} samples a second; the first sound has {rate_hz}",
                    hint="give all sounds one sample rate",
                )
            mixed += sound.getnchannels() > 1
            lengths.append(sound.getnframes())
    return Form(rate_hz, max(lengths)), mixed, sum(length < max(lengths) for length in lengths)


def _decode(files: Sequence[File], form: Form) -> tuple[AnyArray, AnyArray | None]:
    check_size(4 * len(files) * form.samples, f"{files[0][0]}, with {len(files) - 1} others,")
    sounds = np.zeros((len(files), form.samples), np.float32)
    lengths = np.zeros(len(files), np.int64)
    for i, (name, content) in enumerate(files):
        with _opened(name, content) as sound:
            samples = _samples(sound)
            if len(samples) != sound.getnframes():
                raise DataError(f"{name} ends after {len(samples)} of {sound.getnframes()} samples")
            sounds[i, : len(samples)], lengths[i] = samples, len(samples)
    return sounds, lengths if (lengths < form.samples).any() else None


def _samples(sound: wave.Wave_read) -> AnyArray:
    """[samples], the mean of all channels. Eight bits are 0..255 around 128, all others have a sign."""
    data, width = sound.readframes(sound.getnframes()), sound.getsampwidth()
    data = data[: len(data) // (width * sound.getnchannels()) * width * sound.getnchannels()]
    if width == 1:
        values = np.frombuffer(data, np.uint8).astype(np.int32) - 128
    elif width == 3:
        low, middle, high = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int32).T
        values = low | middle << 8 | (high ^ 0x80) - 0x80 << 16
    else:
        values = np.frombuffer(data, f"<i{width}")
    channels = values.reshape(-1, sound.getnchannels()).astype(np.float32) / np.float32(2 ** (8 * width - 1))
    mixed: AnyArray = channels.mean(axis=1, dtype=np.float32)
    return mixed


@contextmanager
def _opened(name: str, content: bytes | Path) -> Iterator[wave.Wave_read]:
    """A sound whose header is read. What cannot be read, there or in the block, becomes a DataError that names it."""
    if isinstance(content, Path) and not content.is_file():
        raise DataError(f"{name} cannot be read as a sound: it is no file")
    size_bytes = len(content) if isinstance(content, bytes) else content.stat().st_size
    try:
        with wave.open(io.BytesIO(content) if isinstance(content, bytes) else str(content), "rb") as sound:
            claimed = sound.getnframes() * sound.getnchannels() * sound.getsampwidth()
            if claimed > size_bytes:
                raise DataError(f"{name} is damaged: it says {claimed} bytes of sound and has {size_bytes} in all")
            if not claimed:
                raise DataError(f"{name} has no samples")
            yield sound
    except (DataError, MemoryError):
        raise
    except Exception as error:  # wave raises its own Error, EOFError, and others for odd headers
        raise DataError(
            f"{name} cannot be read as a sound: {str(error) or type(error).__name__}",
            hint="save it as WAV, PCM of 8, 16, 24 or 32 bits",
        ) from error
