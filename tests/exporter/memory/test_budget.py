"""A size of memory as people write it, and what goes with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgefl.errors import InputError
from edgefl_exporter import export
from edgefl_exporter.memory.budget import budget_of


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("48MB", 48_000_000),
        ("48 mb", 48_000_000),
        ("48MiB", 50_331_648),
        ("0.05GB", 50_000_000),
        ("512kB", 512_000),
        (48_000_000, 48_000_000),
        (None, None),
    ],
)
def test_sizes(said: int | str | None, size: int | None) -> None:
    assert budget_of(said) == size


@pytest.mark.parametrize("said", ["48", "MB", "-1MB", "0MB", "48 apples", "4.MB", "1e3MB", "", 0, -5])
def test_what_is_no_size(said: int | str) -> None:
    with pytest.raises(InputError, match="is no size") as raised:
        budget_of(said)
    assert "--memory 48MB" in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_batch": 8}, "--memory-batch is of --memory"),
        ({"memory": "1MB", "programs": ("evaluate",)}, "--memory is of the program 'train'"),
        ({"memory": "1MB", "batch": 4, "memory_batch": 8}, "--memory-batch is 8, and --batch 4"),
        ({"memory": "nonsense"}, "is no size"),
    ],
)
def test_what_does_not_go_together(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export(nn.Linear(4, 3), torch.zeros(1, 4), out=tmp_path / "b", name="b", **options)
    assert not (tmp_path / "b").exists()
