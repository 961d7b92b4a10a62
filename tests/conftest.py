"""What more than one folder of tests uses. Helpers that are no fixtures are in tests/support/."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

# Before torch is imported, here and in the processes that tests start: its threads wait for each other, and with one
# test per core a small proof takes ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a test does to the exporter in its process is in no file, so nothing is kept for other tests.
os.environ["EDGEFL_CACHE"] = ""

import pytest
from hypothesis import settings
from toy import write_regression

from edgefl.bundle import Bundle


def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis tries the same examples every time, except where `make soak` gives it a seed."""
    fixed = config.getoption("--hypothesis-seed", None) is None
    settings.register_profile("edgefl", deadline=None, derandomize=fixed)
    settings.load_profile("edgefl")


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(NAME, make)`: the folder that `make(FOLDER)` fills, once for all processes of these tests. It stays as it
    is: whoever changes something in it copies it first."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "once"
    shared.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], object]) -> Path:
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / name).exists():
                (shared / f"{name}.new").mkdir()
                make(shared / f"{name}.new")
                (shared / f"{name}.new").rename(shared / name)
        return shared / name

    return once


@pytest.fixture(scope="session")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The hand-made linear regression of toy.py, with two weights."""
    return write_regression(tmp_path_factory.mktemp("bundles") / "regression.bundle")
