"""The runtimes in which a bundle's golden inputs are replayed, and how each is brought onto this machine.

A runtime is a command that takes paths of bundles and prints a line of JSON for each. Environments are made once and
kept beside the sources, where git ignores them.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgefl.manifest import PORTABLE
from edgefl.training_artifacts import ENGINE, VERSION

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "bench" / "replay_worker.py"
WEB = ROOT / "devices" / "web"
ARM64 = ROOT / ".arm64"

# The oldest onnxruntime that pyproject.toml allows, and one between it and the current.
OLDER = ("1.20.1", "1.24.4")
# What `edgefl.replay` imports beside onnxruntime.
REPLAY_NEEDS = ("numpy", "msgspec", "safetensors")


class Missing(Exception):
    """A runtime that cannot be had here. The message says what is missing, and what would bring it."""


@dataclass(frozen=True)
class Answer:
    """What one runtime made of one bundle: program -> error, or why it failed."""

    errors: dict[str, float]
    failed: str = ""

    @property
    def worst(self) -> float:
        return max(self.errors.values(), default=0.0)


@dataclass(frozen=True)
class Runtime:
    """`command` takes bundles' paths. Where it sees another folder as / (`root`), it takes the worker's path first."""

    name: str
    command: tuple[str, ...]
    root: Path | None = None
    engine: str = PORTABLE  # which of a bundle's files it runs

    def replay(self, bundles: Sequence[Path], timeout_s: float = 600) -> list[Answer]:
        """One answer per bundle. A bundle that kills the runtime has that as its answer."""
        answers: list[Answer] = []
        while len(answers) < len(bundles):
            rest = bundles[len(answers) :]
            with self._arguments(rest) as arguments:
                command = [*self.command, *arguments]
                try:
                    done = subprocess.run(
                        command, env=_environment(), capture_output=True, text=True, timeout=timeout_s
                    )
                    out, end = done.stdout, f"exit code {done.returncode}: {_last_line(done.stderr)}"
                except subprocess.TimeoutExpired as expired:
                    out, end = _text(expired.stdout), f"no answer after {timeout_s:g} s"
            lines = [json.loads(line) for line in out.splitlines() if line.endswith("}")]  # the last may be cut
            answers += [Answer(line.get("errors", {}), line.get("error", "")) for line in lines]
            if len(lines) < len(rest):
                answers.append(Answer({}, end))
        return answers

    @contextmanager
    def _arguments(self, bundles: Sequence[Path]) -> Iterator[list[str]]:
        """The bundles' paths; inside another root, of copies there, beside a copy of the worker and what it imports."""
        if self.root is None:
            yield [str(bundle.resolve()) for bundle in bundles]
            return
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            copies = Path(folder)
            shutil.copytree(ROOT / "edgefl", copies / "edgefl", ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(WORKER, copies)
            for number, bundle in enumerate(bundles):
                shutil.copytree(bundle, copies / str(number))
            names = (WORKER.name, *map(str, range(len(bundles))))
            yield [f"/{copies.name}/{name}" for name in names]


def current() -> Runtime:
    """The onnxruntime of this environment."""
    import onnxruntime

    return Runtime(f"onnxruntime {onnxruntime.__version__}", (sys.executable, str(WORKER)))


def onnxruntime_version(version: str) -> Runtime:
    """An onnxruntime from the package index, in an environment of its own without torch."""
    folder = ROOT / f".venv-onnxruntime-{version}"
    python = folder / "bin" / "python"
    with _making(folder) as made:
        if not made:
            _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder))
            pip = (sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check")
            _run(*pip, "install", "--quiet", f"onnxruntime=={version}", *REPLAY_NEEDS)
    return Runtime(f"onnxruntime {version}", (str(python), str(WORKER)))


def web() -> Runtime:
    """onnxruntime-web (WebAssembly) in Node, from npm, in the version that devices/web/package.json names."""
    if not shutil.which("node") or not shutil.which("npm"):
        raise Missing("Node.js is missing (node and npm, version 18 or newer)")
    node = _run("node", "--version").strip()
    if int(node.lstrip("v").partition(".")[0]) < 18:
        raise Missing(f"Node.js is {node}; expected version 18 or newer")
    packages = WEB / "node_modules"
    with _making(packages, newer_than=WEB / "package-lock.json") as made:
        if not made:
            _run("npm", "ci", "--prefix", str(WEB))
    version = json.loads((packages / "onnxruntime-web" / "package.json").read_text())["version"]
    return Runtime(f"onnxruntime-web {version}", ("node", str(WEB / "verify.mjs"), "--format", "json"))


def arm64() -> Runtime:
    """onnxruntime's arm64 wheel in a small arm64 Debian, emulated. `bench/arm64_root.sh` makes it."""
    if not (ARM64 / ".made").exists():
        raise Missing("there is no emulated arm64 Linux; `make test-arm64` brings it, on Debian, as root")
    if os.geteuid() != 0:
        raise Missing("entering the emulated arm64 Linux needs root (chroot)")
    emulated = ("chroot", str(ARM64), "/usr/bin/qemu-aarch64-static", "/usr/bin/python3")
    version = (ARM64 / ".made").read_text().strip()
    return Runtime(f"onnxruntime {version}, arm64", emulated, root=ARM64)


def training_python() -> Path:
    """The interpreter of the environment with onnxruntime-training, which `make coverage` makes. Raises Missing."""
    python = Path(os.environ.get("EDGEFL_TRAINING_PYTHON") or ROOT / ".venv-ort-training" / "bin" / "python")
    if not python.exists():
        raise Missing(
            "no environment with onnxruntime-training: `make test-ort-training` makes one where it has a wheel"
        )
    try:
        _run(str(python), "-c", "from edgefl.training_artifacts import training_api; training_api()")
    except RuntimeError as error:
        raise Missing(f"no onnxruntime-training: {error}") from error
    return python


def training() -> Runtime:
    """onnxruntime-training, with the files that bundles have for it."""
    command = (str(training_python()), str(WORKER), "--engine", ENGINE)
    return Runtime(f"onnxruntime-training {VERSION}", command, engine=ENGINE)


# Each brings its runtime, or raises Missing.
RUNTIMES: dict[str, Callable[[], Runtime]] = {
    **{f"onnxruntime {version}": partial(onnxruntime_version, version) for version in OLDER},
    "onnxruntime": current,
    "onnxruntime-web": web,
    "arm64": arm64,
    "onnxruntime-training": training,
}


@contextmanager
def _making(folder: Path, newer_than: Path | None = None) -> Iterator[bool]:
    """Whether `folder` was made whole before. If not, the block makes it; other processes wait meanwhile."""
    mark = folder / ".made"
    locks = ROOT / "build" / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with open(locks / folder.name, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = mark.exists() and (newer_than is None or mark.stat().st_mtime >= newer_than.stat().st_mtime)
        yield made
        if not made:
            mark.touch()


def _run(*command: str) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {_last_line(done.stderr) or _last_line(done.stdout)}")
    return done.stdout


def _environment() -> dict[str, str]:
    """This process's environment, but for Python's paths: only the sources are importable from outside."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def _text(out: str | bytes | None) -> str:
    return out.decode(errors="replace") if isinstance(out, bytes) else out or ""
