"""FedMRL (Yi et al., NeurIPS 2024, arXiv:2406.00488): a small shared model and a device's own as one."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from edgefl.errors import InputError, LoweringError
from edgefl_exporter.methods.method import Method, NotOfMethod

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgefl_exporter.options import Options
    from edgefl_exporter.recipe import Recipe

    Model = str | nn.Module
else:
    Model = str  # what a command line or a file can say

MODULES = ("small", "local", "projector")


class FedMRL(Method, frozen=True, kw_only=True):
    """The model that is exported is the device's own, `local`.

    small    the model that all devices share, a module; in text FILE:OBJECT or zoo:NAME
    local    in text, the device's own model, in place of MODEL
    d1       how many features the small model has before its last layer; in text it is made with so many

    The gradients of small, local and projector are each clipped to `clip_norm`. This default, SGD's numbers and both
    weights of the loss are those of the paper's code.
    """

    name = "fedmrl"
    defaults = MappingProxyType({"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 1e-3, "clip_norm": 50.0})
    refuses = MappingProxyType({"private": "which decides what is private"})
    options = MappingProxyType(
        {
            "small": "the model that all devices share, FILE:OBJECT or zoo:NAME.",
            "local": "the device's own model; the same as MODEL.",
            "d1": "make the small model with so many features.",
        }
    )
    example = "edgefl export --method fedmrl --small zoo:cnn5 --d1 100 --local zoo:cnn1"

    small: Model | None = None
    local: str | None = None
    d1: Annotated[int, Meta(ge=1)] | None = None

    def source(self, model: str | None) -> str:
        if (model is None) == (self.local is None):
            raise NotOfMethod(f"--method {self.name} needs the device's own model, once: as MODEL or as --local")
        if self.small is None:
            raise NotOfMethod(f"--method {self.name} needs --small, the model that all devices share")
        return model or str(self.local)

    def load(self, options: Options, source: str, example: Tensor) -> FedMRL:
        """Raises InputError for a small model that cannot be made so, or takes other examples."""
        from edgefl_exporter.models.load_model import load_model

        small = load_model(str(self.small), options.shape, seed=options.seed, features=self.d1)
        if (small.example.shape, small.example.dtype) != (example.shape, example.dtype):
            raise InputError(
                f"{self.small} takes examples {list(small.example.shape[1:])} of {small.example.dtype}, {source} "
                f"{list(example.shape[1:])} of {example.dtype}",
                hint="both models see the same data",
            )
        return msgspec.structs.replace(self, small=small.module)

    def model(self, model: nn.Module, example: Tensor, recipe: Recipe) -> object:
        """Both models as one; the recipe's seed makes the projector's initial weights. Raises LoweringError where the
        two do not fit together. Both are left as they were."""
        import torch
        from torch import nn

        from edgefl_exporter.programs.matryoshka import Matryoshka

        if not isinstance(self.small, nn.Module):
            raise InputError("FedMRL needs the model that all devices share", hint="method=FedMRL(small=module)")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            both = Matryoshka(self.small, model, example)
        if self.d1 not in (None, both.small.head.in_features):
            raise LoweringError(
                f"the small model has {both.small.head.in_features} features before its last layer, not {self.d1}"
            )
        return both

    def add(self, recipe: Recipe) -> Recipe:
        from edgefl_exporter.programs.update import Group

        dolls = [Group((f"{module}.*",), clip_norm=recipe.clip_norm) for module in MODULES]
        return replace(
            recipe, groups=(*recipe.groups, *dolls), clip_norm=None, private=("local.*", "projector.*", *recipe.private)
        )
