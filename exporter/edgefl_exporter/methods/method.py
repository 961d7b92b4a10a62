"""What a published method is to the exporter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from msgspec import Struct

from edgefl.errors import ConfigError

if TYPE_CHECKING:  # torch takes seconds to import; the options of a method need none
    from torch import Tensor

    from edgefl_exporter.options import Options
    from edgefl_exporter.recipe import Recipe


class NotOfMethod(ConfigError):
    """An option that a method has not, or one that it lacks."""


class Method(Struct, frozen=True, kw_only=True):
    """What a method needs of a bundle beside a model's own programs. Its fields are options of its own.

    name       of it in the manifest and on the command line
    defaults   option -> what it is where nobody says: SGD's learning_rate, momentum, weight_decay; clip_norm, proximal
    refuses    option -> why nobody may choose it
    options    own option -> what it is, for the help
    example    a command, for the help
    """

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, float]] = MappingProxyType({})
    refuses: ClassVar[Mapping[str, str]] = MappingProxyType({})
    options: ClassVar[Mapping[str, str]] = MappingProxyType({})
    example: ClassVar[str] = ""

    @classmethod
    def sgd(cls) -> dict[str, Any]:
        """What of SGD is not its own default."""
        numbers = ("learning_rate", "momentum", "weight_decay")
        return {name: cls.defaults[name] for name in numbers if name in cls.defaults}

    @property
    def prefix(self) -> str:
        """What a bundle's name begins with where nobody gives one."""
        return f"{self.name}-"

    def check(self, given: Iterable[str]) -> None:
        """Raises NotOfMethod for an option that it does not let choose."""
        for name in given:
            if name in self.refuses:
                raise NotOfMethod(f"--{name.replace('_', '-')} is not of --method {self.name}, {self.refuses[name]}")

    def source(self, model: str | None) -> str:
        """The model to export, FILE:OBJECT or zoo:NAME, where `model` is given beside the options. Raises NotOfMethod
        where there is none."""
        if model is None:
            raise NotOfMethod("Missing argument 'MODEL'.")
        return model

    def load(self, options: Options, source: str, example: Tensor) -> Method:
        """Itself, with models in place of the names of those that its own options name. `source` takes examples like
        `example`."""
        return self

    def model(self, model: Any, example: Tensor, recipe: Recipe) -> object:
        """What is exported in place of a model."""
        return model

    def add(self, recipe: Recipe) -> Recipe:
        """The recipe with what the method needs."""
        return recipe
