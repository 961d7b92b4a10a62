"""A fusion of somebody's own, FILE.py:NAME: whatever it does wrong is one clear line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgefl.aggregator.chosen import load_own, with_numbers
from edgefl.errors import ConfigError, EdgeflError, said
from edgefl.method import Fused, Reply


class OwnFusion:
    """The fusion `name` of the Python file `path`, with numbers. Raises ConfigError for what is none, for what it
    raises, and for tensors that are not those of the replies."""

    def __init__(self, path: Path, name: str, numbers: Mapping[str, Any]) -> None:
        self._called = f"fusion {path.name + ':' + name!r}"
        make = load_own(path, name, self._called, f"class {name}(edgefl.aggregator.fusion.Replies): ...")
        self._fusion = self._safely(with_numbers(make, numbers, self._called))
        for part in ("devices", "add", "merge", "finish"):
            if not hasattr(self._fusion, part):
                raise ConfigError(
                    f"{self._called}: {type(self._fusion).__name__} is no fusion: it has no {part!r}",
                    hint="derive it from edgefl.aggregator.fusion.Replies",
                )
        self.weighs = bool(getattr(self._fusion, "weighs", True))
        self._shapes: dict[str, tuple[int, ...]] = {}

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(self._fusion.devices)

    def add(self, reply: Reply, weight: float) -> None:
        self._safely(self._fusion.add, reply, weight)
        self._shapes |= {name: value.shape for name, value in reply.tensors.items()}

    def merge(self, other: OwnFusion) -> None:
        self._safely(self._fusion.merge, other._fusion)
        self._shapes |= other._shapes

    def finish(self) -> Fused:
        fused = self._safely(self._fusion.finish)
        if not isinstance(fused, Fused):
            raise ConfigError(f"{self._called} gives a {type(fused).__name__}", hint="return self.fused(...)")
        got = {name: np.shape(value) for name, value in fused.tensors.items()}
        for name in sorted(self._shapes.keys() | got.keys()):
            if got.get(name) != self._shapes.get(name):
                raise ConfigError(
                    f"{self._called} gives {name!r} {_shape(got.get(name))}; the replies hold it "
                    f"{_shape(self._shapes.get(name))}"
                )
        return fused

    def _safely(self, function: Callable[..., Any], *given: Any) -> Any:
        try:
            return function(*given)
        except (EdgeflError, AssertionError):
            raise
        except Exception as error:  # code of somebody's own raises what it likes
            raise ConfigError(f"{self._called} failed: {said(error)}") from error


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not at all" if shape is None else f"of shape {list(shape)}"
