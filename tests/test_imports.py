"""Who imports whom: the contracts in pyproject.toml hold, and each of them bites."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ["edgefl", "exporter/edgefl_exporter", "devices/python/edgefl_device", "broker/edgefl_broker"]
LINT = Path(sys.executable).with_name("lint-imports")


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of the source tree at `root`, whatever is installed."""
    path = os.pathsep.join(str((root / source).parent) for source in SOURCES)
    return subprocess.run(
        [LINT, "--no-cache"], cwd=root, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )


def test_the_contracts_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("edgefl/aggregator/fusion.py", "import edgefl_device", "only edgefl.runs and edgefl.cli wire"),
        ("devices/python/edgefl_device/engines/runtime.py", "import edgefl_exporter", "know nothing of each other"),
        (
            "exporter/edgefl_exporter/programs/losses.py",
            "import edgefl.aggregator.coordinator",
            "take only what all share",
        ),
        (
            "devices/python/edgefl_device/engines/runtime.py",
            "def f(): import edgefl.aggregator.fusion",
            "take only what all share",
        ),
        ("broker/edgefl_broker/engines.py", "import edgefl.protocol", "the broker takes only errors"),
        ("edgefl/aggregator/coordinator.py", "import paho.mqtt.client", "only edgefl.mqtt imports an MQTT client"),
        ("devices/python/edgefl_device/engines/runtime.py", "import torch", "only the exporter imports torch"),
    ],
)
def test_a_broken_contract_is_found(file: str, line: str, contract: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for source in SOURCES:
        shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / file, "a") as opened:
        opened.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    broken = [line for line in done.stdout.splitlines() if "BROKEN" in line]
    assert len(broken) == 1 and contract in broken[0], done.stdout


def test_the_command_line_loads_nothing_heavy_until_it_must() -> None:
    heavy = [
        "torch",
        "onnx",
        "onnxruntime",
        "sklearn",
        "edgefl_exporter",
        "edgefl_device",
        "edgefl_broker",
    ]
    script = f"import sys, edgefl.cli; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
