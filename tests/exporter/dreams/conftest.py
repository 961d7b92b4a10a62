"""The bundles of dreamed.py, made once."""

from __future__ import annotations

import pytest
from dreamed import export_both

from edgefl.bundle import Bundle


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return export_both(tmp_path_factory.mktemp("dreams"))
