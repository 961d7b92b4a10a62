"""Data sets by name, and what is no source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from read_refused import refused

from edgefl.errors import DataError
from edgefl_device.sources import read


def test_digits() -> None:
    # In its own process: scikit-learn's imports are not ours to keep free of warnings.
    code = (
        "from edgefl_device.sources import read_splits\n"
        "s = read_splits('digits')\n"
        "for d in (s.train, s.test):\n"
        "    print(d.features.shape, d.features.dtype, d.features.min(), d.features.max(), d.labels[:5].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    train, test = done.stdout.splitlines()
    # load_digits begins 0 1 2 ... 9 0 1 ...; every fifth, from the first, is for testing
    assert train == "(1437, 1, 8, 8) float32 0.0 1.0 [1, 2, 3, 4, 6]"
    assert test == "(360, 1, 8, 8) float32 0.0 1.0 [0, 5, 0, 5, 0]"


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError) as caught:
        read("digits")
    assert caught.value.hint == "pip install 'edgefl[demo]'"


def test_unknown_sources(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere").startswith("no data at ")
    (tmp_path / "data.xyz").write_bytes(b"")
    assert refused(tmp_path / "data.xyz").endswith("unknown data format")
