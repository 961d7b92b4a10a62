"""FedProto (Tan et al., AAAI 2022, arXiv:2105.00243): a loss that pulls to prototypes, and the program `prototypes`."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from edgefl.names import KNOWN, PROTOTYPES
from edgefl_exporter.methods.method import Method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgefl_exporter.recipe import Recipe


class FedProto(Method, frozen=True, kw_only=True):
    """A model that ends with a Linear, whose d inputs all devices agree on; the model itself never leaves a device."""

    name = "fedproto"
    refuses = MappingProxyType({"private": "whose models are private anyway"})

    def model(self, model: nn.Module, example: Tensor, recipe: Recipe) -> object:
        """Raises LoweringError for a model that does not end with a Linear."""
        from edgefl_exporter.programs.prototypes import Prototypes

        return Prototypes(model, example)

    def add(self, recipe: Recipe) -> Recipe:
        from edgefl_exporter.programs.prototypes import prototypes

        return replace(
            recipe,
            own_programs=(prototypes, *recipe.own_programs),
            private=("extractor.*", "head.*"),
            announced=(PROTOTYPES, KNOWN, *recipe.announced),
        )
