"""A model in two parts: what makes features, and the Linear that reads them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from edgefl.errors import LoweringError, said


class Split(nn.Module):
    """A copy of a model as `extractor`, which turns a batch into features [batch, d], and `head`, its last Linear."""

    extractor: nn.Module
    head: nn.Linear

    def __init__(self, model: nn.Module, example_input: Tensor, what: str = "the model") -> None:
        """Raises LoweringError where a Linear is not what the model ends with; `what` names the model in it."""
        super().__init__()
        extractor = copy.deepcopy(model)
        path = next((path for path, m in reversed([*extractor.named_modules()]) if isinstance(m, nn.Linear)), None)
        if not path:
            raise LoweringError(f"{what} has no Linear inside", hint="end it with Flatten and Linear")
        head = extractor.get_submodule(path)
        assert isinstance(head, nn.Linear)
        extractor.set_submodule(path, nn.Identity())
        if not _ends_with(model, extractor, head, example_input, what):
            raise LoweringError(
                f"{what} does not end with its last Linear, {path!r}",
                hint="return that layer's output as it is: logits, without softmax",
            )
        self.extractor, self.head = extractor, head

    def forward(self, x: Tensor) -> Tensor:
        """What the whole model returns."""
        output: Tensor = self.head(self.extractor(x))
        return output


def _ends_with(model: nn.Module, extractor: nn.Module, head: nn.Linear, example_input: Tensor, what: str) -> bool:
    """Whether the model is `head` after `extractor`, whose features are [batch, d]."""
    x = torch.cat([example_input] * 2)
    modes = {part: part.training for whole in (model, extractor) for part in whole.modules()}
    try:
        with torch.no_grad():
            wanted, features = model.eval()(x), extractor.eval()(x)
    except Exception as error:
        raise LoweringError(
            f"{what} fails on an input of shape {list(x.shape)}: {said(error)}",
            hint="is the example input's shape [batch, ...] right?",
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode
    if not isinstance(features, Tensor) or tuple(features.shape) != (len(x), head.in_features):
        return False
    with torch.no_grad():
        return isinstance(wanted, Tensor) and torch.equal(wanted, head(features))
