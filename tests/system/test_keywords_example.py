"""examples/keywords.py: a folder of recordings becomes what the zoo's models of keywords take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from waves import wav

from edgefl_device.sources import read_splits
from edgefl_exporter.zoo import ZOO

SCRIPT = Path(__file__).parents[2] / "examples" / "keywords.py"


def hum(path: Path, frequency_hz: int, seconds: float, rate_hz: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    path.write_bytes(wav((10_000 * np.sin(2 * np.pi * frequency_hz * t)).astype(int).tolist(), rate_hz=rate_hz))


def keywords(words: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(words), "-o", str(words / "keywords.npz"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("model", ["kws", "kws-1d"])
def test_recordings_become_what_the_model_takes(tmp_path: Path, model: str) -> None:
    hum(tmp_path / "train" / "no" / "a.wav", 300, 1.0)
    hum(tmp_path / "train" / "yes" / "a.wav", 3000, 1.0)
    hum(tmp_path / "train" / "yes" / "b.wav", 3000, 0.5)
    hum(tmp_path / "test" / "no" / "a.wav", 300, 1.2)
    done = keywords(tmp_path, "--for", model)
    assert done.returncode == 0, done.stderr
    splits = read_splits(tmp_path / "keywords.npz")
    assert splits.test is not None
    assert splits.train.features.shape[1:] == tuple(ZOO[model].make()[1].shape[1:])
    low, high, short = (x.reshape(49, 10) if model == "kws" else x.T for x in splits.train.features)
    # The second coefficient weighs low bands against high ones; the first is how loud it is.
    assert low[10, 1] > 0 > high[10, 1]
    assert short[-1, 0] < high[-1, 0] and np.allclose(short[5], high[5], atol=0.1)
    assert np.allclose(splits.test.features[0], splits.train.features[0], atol=0.1)  # cut to a second
    assert splits.train.labels.tolist() == [0, 1, 1]


def test_another_rate_is_refused(tmp_path: Path) -> None:
    hum(tmp_path / "no" / "a.wav", 300, 1.0, rate_hz=8000)
    done = keywords(tmp_path)
    assert done.returncode == 2 and "the sounds have 8000 samples a second; expected 16000" in done.stderr
