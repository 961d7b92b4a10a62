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

import click
import package_size
import pytest

import edgefl
from edgefl.bundle import Bundle
from edgefl.cli import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
    assert extras_with("torch", needs) == {"exporter", "all", "test", "mutate"}
    # Nor what only a person at a terminal needs, or who has images: 25 MB.
    assert extras_with("rich", needs).isdisjoint({"", "device"})
    assert extras_with("pillow", needs).isdisjoint({"", "device"})


@pytest.mark.slow
def test_what_a_pi_installs(wheel: Path, tmp_path: Path) -> None:
    """In 140 MB, with what signatures need. On x86-64 onnxruntime and NumPy alone are 133."""
    package_size.install([f"{wheel}[device]", package_size.BESIDE], tmp_path, package_size.PI)
    sizes = package_size.sizes_mb(tmp_path)
    assert {"edgefl", "onnxruntime", "numpy", "cryptography"} <= sizes.keys()
    assert sum(sizes.values()) <= package_size.LIMIT_MB, sizes


def test_the_size_of_a_package_is_that_of_its_files_but_byte_code() -> None:
    sizes = package_size.sizes_mb(Path(click.__file__).parents[1])
    files = [file for file in Path(click.__file__).parent.glob("*.py*") if file.suffix != ".pyc"]
    least = sum(file.stat().st_size for file in files) / 1e6
    assert least <= sizes["click"] < least + 0.1


def extras_with(package: str, needs: list[str]) -> set[str]:
    """The extras that bring a package; "" is the base."""
    return {re.sub(r".*extra == '(\w+)'.*|.*", r"\1", line) for line in needs if line.startswith(package)}


def test_every_extra_that_a_hint_or_a_page_names_is_there() -> None:
    """And it brings the package that was missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    sources = [path for folder in ("edgefl", "exporter", "devices", "broker") for path in (ROOT / folder).rglob("*.py")]
    named = {
        name
        for path in (*pages, *sources)
        for found in re.findall(r"edgefl\[([a-z,]+)\]", path.read_text())
        for name in found.split(",")
    }
    assert {"device", "exporter", "aggregator", "broker"} <= named <= extras.keys()
    for package, extra in EXTRAS.items():
        distribution = {"sklearn": "scikit-learn", "PIL": "pillow"}.get(package, package.replace("_", "-"))
        assert any(re.match(rf"{distribution}\b", wanted) for wanted in extras[extra]), package


def test_where_a_package_is_missing_the_hint_names_the_extra_of_the_command(tmp_path: Path, regression: Bundle) -> None:
    """On a device without onnx and torch: the exporter needs more than the first that it misses."""
    bundle = str(regression.path)
    script = f"""if True:
        import sys
        sys.modules.update(dict.fromkeys(("onnx", "torch", "onnxscript", "onnx_ir", "sklearn")))
        from click.testing import CliRunner
        from edgefl.cli import main
        for words in (["export", "zoo:digits"], ["doctor", "zoo:digits"], ["doctor", {bundle!r}],
                      ["model", {bundle!r}, {bundle!r} + "/weights.safetensors"],
                      ["split", "digits", "--devices", "2", "-o", "parts"]):
            done = CliRunner().invoke(main, words)
            print(done.exit_code, done.stderr.splitlines()[-1])
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    said = [f"3 hint: pip install 'edgefl[{extra}]'" for extra in (*["exporter"] * 2, *["aggregator"] * 2, "demo")]
    assert done.stdout.splitlines() == said, done.stderr


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
