"""Real processes, a real broker, real files: what a person would start by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import DEVICES, Process

import edgefl_broker
from edgefl.runs.parts import write_parts
from edgefl_broker import RunningBroker


@pytest.fixture(scope="session")
def digits_bundle(once: Callable[..., Path]) -> Path:
    """A bundle exported by the real exporter."""

    def exported(folder: Path) -> None:
        from edgefl_exporter import export
        from edgefl_exporter.models.load_model import load_model

        module, example, *_ = load_model("zoo:digits", seed=0)
        export(module, example, out=folder / "digits.bundle", name="digits")

    return once("digits", exported) / "digits.bundle"


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, dealt out to three devices."""
    out = tmp_path_factory.mktemp("parts")
    write_parts("digits", out, DEVICES, "dirichlet", 1.0, 2, seed=0)
    return out


@pytest.fixture
def broker() -> Iterator[RunningBroker]:
    with edgefl_broker.start() as running:
        yield running


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start an edgefl command in tmp_path; all of them are ended with the test."""
    running: list[Process] = []

    def start(*arguments: str) -> Process:
        running.append(Process(tmp_path, *arguments))
        return running[-1]

    yield start
    for process in running:
        if process.child.poll() is None:
            process.child.kill()
        process.child.communicate()
