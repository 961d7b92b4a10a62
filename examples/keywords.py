"""Spoken words as what models of keyword spotting take: cepstral coefficients (MFCC) of a second of sound.

    python examples/keywords.py words -o keywords.npz          # words/yes/1.wav ... -> x [n, 1, 49, 10], for zoo:kws
    edgefl device --data keywords.npz ...

Each device does this with its own recordings, before it starts. A recording of another length is cut, or has silence
behind it. Frames as in Zhang et al. 2017 (arXiv:1711.07128): 40 ms every 20 ms; Choi et al. 2019 (arXiv:1904.03814) for
kws-1d: 30 ms every 10 ms.
"""

from __future__ import annotations

import argparse
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgefl_device.sources import read_splits

RATE_HZ = 16_000
BANDS = 40
LOWEST_HZ, HIGHEST_HZ = 20.0, 7_600.0


@dataclass(frozen=True)
class Frames:
    """How a second is cut: frames of `length` samples, `step` apart; `coefficients` of each."""

    length: int
    step: int
    coefficients: int

    def of(self, sound: np.ndarray) -> np.ndarray:
        """[samples] -> [frames, coefficients]."""
        second = np.zeros(RATE_HZ, np.float32)
        second[: len(sound)] = sound[:RATE_HZ]
        frames = np.lib.stride_tricks.sliding_window_view(second, self.length)[:: self.step]
        power = np.abs(np.fft.rfft(frames * np.hanning(self.length))) ** 2
        energy = np.log(power @ bands(self.length).T + 1e-6)
        return (energy @ cosines(self.coefficients).T).astype(np.float32)


MODELS = {"kws": Frames(640, 320, 10), "kws-1d": Frames(480, 160, 40)}


def bands(length: int) -> np.ndarray:
    """[bands, frequencies]: triangles, evenly spaced as the ear hears (mel)."""
    edges = 700 * (10 ** (np.linspace(mel(LOWEST_HZ), mel(HIGHEST_HZ), BANDS + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(length, 1 / RATE_HZ)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.clip(np.minimum((frequencies - low) / (middle - low), (high - frequencies) / (high - middle)), 0, None)


def mel(frequency_hz: float) -> float:
    return float(2595 * np.log10(1 + frequency_hz / 700))


def cosines(coefficients: int) -> np.ndarray:
    """[coefficients, bands]: the discrete cosine transform, orthonormal."""
    at = np.pi * np.arange(coefficients)[:, None] * (np.arange(BANDS) + 0.5) / BANDS
    table = np.cos(at) * np.sqrt(2 / BANDS)
    table[0] /= np.sqrt(2)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", help="a folder of 16 kHz WAV files per word")
    parser.add_argument("-o", "--out", required=True, help=".npz to write")
    parser.add_argument("--for", dest="model", choices=MODELS, default="kws")
    chosen = parser.parse_args()
    with wave.open(str(next(Path(chosen.words).rglob("*.wav")))) as sound:  # all others have its rate, or are refused
        if sound.getframerate() != RATE_HZ:
            parser.error(f"the sounds have {sound.getframerate()} samples a second; expected {RATE_HZ}")
    splits = read_splits(chosen.words)
    frames = MODELS[chosen.model]
    arrays = {}
    for suffix, part in (("", splits.train), ("_test", splits.test)):
        if part is not None:
            cepstra = np.stack([frames.of(sound) for sound in part.features])  # [n, frames, coefficients]
            arrays["x" + suffix] = cepstra[:, None] if chosen.model == "kws" else cepstra.transpose(0, 2, 1)
            arrays["y" + suffix] = part.labels
    names = splits.train.names or {}
    if set(names) == set(range(len(names))):  # words; folders that are called by numbers have these as labels
        arrays["classes"] = np.array([names[label] for label in sorted(names)])
    np.savez(chosen.out, **arrays)
    print(f"{chosen.out}: {', '.join(f'{name} {list(array.shape)}' for name, array in arrays.items())}")


if __name__ == "__main__":
    main()
