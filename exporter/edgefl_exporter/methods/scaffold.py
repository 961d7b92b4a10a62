"""SCAFFOLD (Karimireddy et al., ICML 2020, arXiv:1910.06378): corrected gradients, and the program `control`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgefl_exporter.methods.method import Method

if TYPE_CHECKING:
    from edgefl_exporter.recipe import Recipe


class Scaffold(Method, frozen=True, kw_only=True):
    """A recipe with `controls` and the program; the variates, which are announced, come with it."""

    name = "scaffold"

    def add(self, recipe: Recipe) -> Recipe:
        from edgefl_exporter.programs.scaffold import control

        return replace(recipe, controls=True, own_programs=(control, *recipe.own_programs))
