"""The environment with onnxruntime-training (`make test-ort-training` makes it), and a bundle for it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hard_net import hard_net
from torch import nn

from edgefl.bundle import Bundle
from edgefl.training_artifacts import ENGINE

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("EDGEFL_TRAINING_PYTHON") or ROOT / ".venv-ort-training" / "bin" / "python")


@pytest.fixture(scope="session")
def training_python() -> Path:
    """An interpreter that has onnxruntime-training and edgefl; skips, and says why, where there is none."""
    if not PYTHON.exists():
        pytest.skip(
            "no environment with onnxruntime-training: `make test-ort-training` makes one where there is a wheel"
        )
    code = "from importlib.metadata import version; version('onnxruntime-training-cpu')"
    if subprocess.run([PYTHON, "-c", code], capture_output=True).returncode:
        pytest.skip(f"{PYTHON} has no onnxruntime-training: there is no wheel for this machine and Python")
    code = "from edgefl.training_artifacts import training_api; training_api()"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return PYTHON


@pytest.fixture(scope="session")
def in_training(training_python: Path) -> Callable[..., str]:
    """Run a script of this folder there; its standard output."""

    def run(script: str, *arguments: object) -> str:
        command = [training_python, Path(__file__).parent / script, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def hard_bundle(training_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """`hard_net` with momentum, for both engines."""
    from edgefl_exporter import SGD, export

    return export(
        hard_net(),
        torch.zeros(1, 1, 8, 8),
        out=tmp_path_factory.mktemp("exported") / "hard.bundle",
        name="hard",
        optimizer=SGD(learning_rate=0.05, momentum=0.9, weight_decay=1e-3),
        target=ENGINE,
        training_python=training_python,
    )


@pytest.fixture(scope="session")
def adam_bundle(training_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Dropout and AdamW, which count their steps in integers, and all that changes gradients on their way to it."""
    from edgefl_exporter import export
    from edgefl_exporter.programs.optimizers import Adam
    from edgefl_exporter.programs.update import Group

    torch.manual_seed(1)
    return export(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10), nn.Dropout(0.1)),
        torch.zeros(1, 1, 8, 8),
        out=tmp_path_factory.mktemp("exported") / "adam.bundle",
        name="adam",
        optimizer=Adam(weight_decay=0.01, decoupled=True),
        groups=[Group(("3.*",), learning_rate=0.5)],
        clip_norm=1.0,
        proximal=0.1,
        micro_batches=2,
        target=ENGINE,
        training_python=training_python,
    )
