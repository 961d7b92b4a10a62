"""WAV files made by hand."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence


def wav(samples: Sequence[int], *, bits: int = 16, channels: int = 1, rate_hz: int = 8000) -> bytes:
    """A file of these samples, those of all channels by turns."""
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(bits // 8)
        file.setframerate(rate_hz)
        file.writeframes(b"".join(value.to_bytes(bits // 8, "little", signed=bits > 8) for value in samples))
    return data.getvalue()
