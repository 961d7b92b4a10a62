"""Runs in memory of the linear regression: tests/support/descent.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from descent import MakeWorld, fedavg, make_data
from memory import World
from toy import write_regression

from edgefl.bundle import Bundle

WIDE = 40_000  # weights of 160 kB: a blob of three chunks down, an upload of three chunks up


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_regression(tmp_path_factory.mktemp("bundles") / "wide.bundle", WIDE)


@pytest.fixture(params=["narrow", "wide"])
def bundle(request: pytest.FixtureRequest, regression: Bundle, wide: Bundle) -> Bundle:
    """Weights that travel inside one message, and weights that travel in chunks."""
    return regression if request.param == "narrow" else wide


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    """A run on a bundle: FedAvg and a clean network, unless options say otherwise."""
    made: list[World] = []

    def make(bundle: Bundle, **options: Any) -> World:
        data = make_data(bundle.manifest.data.feature.shape[0])
        given, method = options.pop("classes", bundle), options.pop("method", None) or fedavg(bundle)
        made.append(World(tmp_path, given, method, data, **options))
        return made[-1]

    yield make
    for world in made:
        world.store.close()
