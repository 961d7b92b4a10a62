"""A folder of sounds per class: every depth is -1..1, and shorter ones have silence behind them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from read_refused import refused
from waves import wav

from edgefl_device.sources import read, read_splits


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_folder_of_sounds_per_class(tmp_path: Path) -> None:
    put(tmp_path / "train" / "yes" / "a.wav", wav([0, 16384, -32768]))
    put(tmp_path / "train" / "no" / "a.WAV", wav([1, 2, 3]))
    put(tmp_path / "test" / "yes" / "a.wav", wav([-1, 0, 1]))
    splits = read_splits(tmp_path)
    assert splits.train.names == {0: "no", 1: "yes"} and splits.train.labels.tolist() == [0, 1]
    assert splits.train.features.dtype == np.float32 and splits.train.features.shape == (2, 3)
    assert splits.train.features[1].tolist() == [0, 0.5, -1]
    assert splits.train.lengths is None
    assert splits.test is not None and splits.test.labels.tolist() == [1]
    assert splits.notes == ()


@pytest.mark.parametrize(
    ("bits", "samples"),
    [(8, [128, 192, 0]), (16, [0, 2**14, -(2**15)]), (24, [0, 2**22, -(2**23)]), (32, [0, 2**30, -(2**31)])],
)
def test_every_depth_is_scaled(tmp_path: Path, bits: int, samples: list[int]) -> None:
    put(tmp_path / "yes" / "a.wav", wav(samples, bits=bits))
    assert read(tmp_path).features.tolist() == [[0, 0.5, -1]]


def test_24_bits_by_hand(tmp_path: Path) -> None:
    samples = [1, -1, 0x010203, -0x010203]
    put(tmp_path / "yes" / "a.wav", wav(samples, bits=24))
    np.testing.assert_array_equal(read(tmp_path).features[0] * 2**23, samples)


def test_channels_are_mixed(tmp_path: Path) -> None:
    put(tmp_path / "yes" / "a.wav", wav([0, 16384, -16384, 16384], channels=2))
    splits = read_splits(tmp_path)
    assert splits.train.features.tolist() == [[0.25, 0]]
    assert splits.notes == ("1 sounds have several channels: their mean is read",)


def test_shorter_sounds_have_silence_behind_them(tmp_path: Path) -> None:
    put(tmp_path / "train" / "yes" / "a.wav", wav([16384]))
    put(tmp_path / "train" / "yes" / "b.wav", wav([16384] * 2))
    put(tmp_path / "test" / "yes" / "a.wav", wav([16384] * 3))
    splits = read_splits(tmp_path)
    assert splits.train.features.tolist() == [[0.5, 0, 0], [0.5, 0.5, 0]]
    assert splits.train.lengths is not None and splits.train.lengths.tolist() == [1, 2]
    assert splits.test is not None and splits.test.features.tolist() == [[0.5, 0.5, 0.5]]
    assert splits.notes == ("2 sounds are shorter than the longest, of 3 samples: silence behind them",)


def test_sounds_that_cannot_be_used(tmp_path: Path) -> None:
    good = wav([1, 2, 3])
    put(tmp_path / "yes" / "a.wav", good)
    put(tmp_path / "yes" / "b.wav", wav([1, 2, 3], rate_hz=16000))
    assert refused(tmp_path).endswith("b.wav has 16000 samples a second; the first sound has 8000")
    put(tmp_path / "yes" / "b.wav", b"ID3")
    assert "b.wav cannot be read as a sound" in refused(tmp_path)
    put(tmp_path / "yes" / "b.wav", good[:20] + b"\3\0" + good[22:])  # floats
    assert "b.wav cannot be read as a sound: unknown format: 3" in refused(tmp_path)
    put(tmp_path / "yes" / "b.wav", wav([]))
    assert refused(tmp_path).endswith("b.wav has no samples")
    put(tmp_path / "yes" / "b.wav", good[:40] + (2**31).to_bytes(4, "little") + good[44:])
    assert "b.wav is damaged: it says 2147483648 bytes of sound and has 50 in all" in refused(tmp_path)
    put(tmp_path / "yes" / "b.wav", good[:-2])
    assert refused(tmp_path).endswith("b.wav ends after 2 of 3 samples")
    (tmp_path / "yes" / "b.wav").unlink()
    put(tmp_path / "yes" / "b.mp3", b"ID3")
    assert refused(tmp_path).endswith("b.mp3 is of a kind of sound that is not read")
    (tmp_path / "yes" / "b.mp3").unlink()
    Image.new("L", (1, 1)).save(tmp_path / "yes" / "b.png")
    assert refused(tmp_path).endswith("holds images and sounds")


def test_more_in_memory_than_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sound is long, and all others are filled up to it."""
    monkeypatch.setenv("EDGEFL_MAX_ARRAY_MB", "1")
    put(tmp_path / "yes" / "a.wav", wav([0] * 10_000))
    for i in range(30):
        put(tmp_path / "yes" / f"{i}.wav", wav([1]))
    assert "would be 2 MB in memory; at most 1 are unpacked" in refused(tmp_path)
