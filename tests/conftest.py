"""What more than one folder of tests uses. Helpers that are no fixtures are in tests/support/."""

from __future__ import annotations

import os

# Before torch is imported, here and in the processes that tests start: its threads wait for each other, and with one
# test per core a small proof takes ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from toy import write_regression

from edgefl.bundle import Bundle


def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis tries the same examples every time, except where `make soak` gives it a seed."""
    fixed = config.getoption("--hypothesis-seed", None) is None
    settings.register_profile("edgefl", deadline=None, derandomize=fixed)
    settings.load_profile("edgefl")


@pytest.fixture(scope="session")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The hand-made linear regression of toy.py, with two weights."""
    return write_regression(tmp_path_factory.mktemp("bundles") / "regression.bundle")
