"""What people install: one wheel, four import names, a base without torch that can already help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import edgefl

ROOT = Path(__file__).parents[1]
IMPORT_NAMES = {"edgefl", "edgefl_exporter", "edgefl_device", "edgefl_broker"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree."""
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out)
    (built,) = out.glob("*.whl")
    return built


def test_it_holds_our_four_names_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops - {info} == IMPORT_NAMES
    assert f"{info}/licenses/LICENSE" in names
    for source in ("edgefl", "exporter/edgefl_exporter", "devices/python/edgefl_device", "broker/edgefl_broker"):
        folder = ROOT / source
        for file in (*folder.rglob("*.py"), *folder.glob("*/web/*")):
            assert f"{folder.name}/{file.relative_to(folder).as_posix()}" in names


def test_the_base_and_a_device_need_no_torch(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(path).decode())
    assert metadata["Version"] == edgefl.__version__
    needs = metadata.get_all("Requires-Dist", [])
    extras = {re.sub(r".*extra == '(\w+)'.*|.*", r"\1", line) for line in needs if line.startswith("torch")}
    assert extras == {"exporter", "all", "test", "mutate"}


def test_the_base_installs_alone_and_helps(wheel: Path, tmp_path: Path) -> None:
    """From the package index, into an empty environment: no torch, no onnxruntime, and `edgefl --help` works."""
    venv.create(tmp_path / "bare", with_pip=True)
    scripts = tmp_path / "bare" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    installed = run(python, "-m", "pip", "list", "--format", "freeze").lower()
    for heavy in ("torch", "onnx", "onnxruntime", "onnxscript", "scikit-learn", "iotcore"):
        assert f"\n{heavy}==" not in f"\n{installed}"
    assert "Usage: edgefl" in run(scripts / "edgefl", "--help")
    assert run(scripts / "edgefl", "--version").strip().endswith(edgefl.__version__)
    # Everything that needs no extra imports, also as a whole.
    run(python, "-W", "error", "-c", "import edgefl.aggregator.coordinator, edgefl.mqtt, edgefl_broker")


def run(*command: str | Path) -> str:
    """Standard output of a command that must succeed; this environment's paths do not reach it."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
