"""Every benchmark runs, and `--format json` is one object with the fields that tools read."""

from __future__ import annotations

import gzip
import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

BENCH = Path(__file__).parents[1] / "bench"
# Beside the benchmarks there are the harness, and workers that benchmarks start.
COMMANDS = sorted(path for path in BENCH.glob("*.py") if "@options\n" in path.read_text())


@pytest.fixture(scope="module")
def mnist_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as MNIST's: 2,000 training and 1,000 test images of noise with a bright row that tells the digit."""
    folder = tmp_path_factory.mktemp("mnist")
    draw = np.random.default_rng(0)
    for prefix, examples in (("train", 2000), ("t10k", 1000)):
        labels = np.arange(examples, dtype=np.uint8) % 10
        images = draw.integers(0, 60, (examples, 28, 28), dtype=np.uint8)
        images[np.arange(examples), 4 + 2 * labels] = 250
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return folder


def loaded(path: Path) -> ModuleType:
    """The file as a module of its own: an example, or a person's own file, may have its name."""
    spec = spec_from_file_location(f"bench.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_quick_run_prints_one_object(path: Path, mnist_like: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In this process, which imports torch once for all of them; run as a script, a file does the same."""
    assert path.read_text().endswith('\n\nif __name__ == "__main__":\n    main()\n')
    arguments = ["--quick", "--format", "json"]
    if "@data_option" in path.read_text():
        arguments += ["--data", str(mnist_like)]
    loaded(path).main(arguments, standalone_mode=False)
    out, _ = capfd.readouterr()
    result = json.loads(out)  # one object and nothing else on standard output
    assert set(result) == {"name", "machine", "versions", "rows", "targets"}
    assert result["name"] and result["machine"]["cores"] > 0 and result["versions"]["edgefl"]
    assert result["rows"] and all(row.keys() == result["rows"][0].keys() for row in result["rows"])
    assert result["targets"]
    for target in result["targets"]:
        assert {"name", "value", "bound", "met"} <= target.keys()
        assert isinstance(target["met"], bool)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_its_help_says_what_it_measures(path: Path) -> None:
    """In this process, which imports torch once for all of them."""
    done = CliRunner().invoke(loaded(path).main, ["--help"])
    assert done.exit_code == 0, done.output
    assert "--quick" in done.output and "--format" in done.output
    assert len(done.output.split("Options:")[0].split()) > 5  # more than "Usage: NAME [OPTIONS]"


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 0x08, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header + array.tobytes())
