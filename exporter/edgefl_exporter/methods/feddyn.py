"""FedDyn (Acar et al., ICLR 2021, arXiv:2111.04263): a proximal term with a memory, and the program `dynamic`."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from edgefl.errors import InputError
from edgefl_exporter.methods.method import Method

if TYPE_CHECKING:
    from edgefl_exporter.recipe import Recipe


class FedDyn(Method, frozen=True, kw_only=True):
    """A recipe with `proximal`, alpha, which a run can set; what a device remembers never leaves it."""

    name = "feddyn"
    defaults = MappingProxyType({"proximal": 0.01})

    def add(self, recipe: Recipe) -> Recipe:
        """Raises InputError for an alpha of 0, by which the aggregator divides."""
        from edgefl_exporter.programs.dynamic import dynamic

        if not recipe.proximal:
            raise InputError("--proximal is 0; alpha of --method feddyn is above 0", hint="leave --proximal out")
        return replace(recipe, shifts=True, own_programs=(dynamic, *recipe.own_programs))
