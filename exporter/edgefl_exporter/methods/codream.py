"""CoDream (Singh et al., arXiv:2402.15968): programs that dream, label and learn from labelled dreams."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from edgefl.data_contract import UNIT
from edgefl.errors import InputError
from edgefl.names import DREAMS, GENERATOR
from edgefl_exporter.methods.method import Method

if TYPE_CHECKING:
    from edgefl_exporter.recipe import Recipe


class CoDream(Method, frozen=True, kw_only=True):
    """A classifier of float32 inputs, which never leaves a device.

    dreams       how many the program `likeness` compares with own images
    generator    with one that makes dreams, and its programs; for images alone
    """

    name = "codream"
    refuses = MappingProxyType({"private": "whose models are private anyway"})
    options = MappingProxyType(
        {
            "dreams": "how many dreams are compared with own images.",
            "generator": "with the programs of its fast variant.",
        }
    )

    dreams: Annotated[int, Meta(ge=1)] = 64
    generator: bool = False

    def add(self, recipe: Recipe) -> Recipe:
        """Raises InputError for fewer dreams than one."""
        from edgefl_exporter.programs.distillation import distill
        from edgefl_exporter.programs.dreams import dream, dream_steps, label
        from edgefl_exporter.programs.generator import generate, generator_step
        from edgefl_exporter.programs.likeness import likeness
        from edgefl_exporter.programs.observed import statistics

        if self.dreams < 1:
            raise InputError(f"{self.dreams} dreams; expected at least 1")
        if recipe.range not in (None, UNIT):
            raise InputError("dreams are images with pixels of 0..1", hint="leave --range out, or give --range 0,1")
        normalisation = recipe.normalisation
        compare = partial(likeness, dreams=self.dreams, normalisation=normalisation)
        fast = [partial(make, normalisation=normalisation) for make in (generate, generator_step) if self.generator]
        return replace(
            recipe,
            own_programs=(statistics, dream, dream_steps, label, distill, compare, *fast, *recipe.own_programs),
            private=("*",),
            announced=(DREAMS, *([f"{GENERATOR}*"] if self.generator else []), *recipe.announced),
        )
