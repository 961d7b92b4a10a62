"""The batch that a bundle carries: of six examples, with PyTorch's answers, and where rounding decides least."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_proof import STATE, Asked, definition, regression, samples, sides

from edgefl.errors import ParityError
from edgefl.tensors import Array
from edgefl_exporter.proof.golden import golden
from edgefl_exporter.proof.sides import Values

Answer = Callable[[Mapping[str, Tensor]], Values]


def drawn(seed: int) -> Values:
    return definition().draw(samples(), 6, torch.Generator().manual_seed(seed))


def made(
    oracle: Answer = regression, file: Answer = regression, typical: Mapping[str, float] | None = None
) -> dict[str, Array]:
    both = sides(definition(oracle, typical=typical), file)
    state = {**STATE, **{name: torch.full_like(STATE[name], value) for name, value in (typical or {}).items()}}
    return golden(both, state, STATE, samples(), seed=40)


def batch_of(found: Mapping[str, Array]) -> int:
    """The seed, less 41, of the batch that was taken."""
    return next(i for i in range(8) if np.array_equal(found["in.x"], drawn(41 + i)["x"].numpy()))


def test_it_holds_inputs_and_pytorchs_answers_and_no_weights() -> None:
    found = made(lambda values: regression(values) | {"slack.loss": torch.tensor(1.0)})
    assert found.keys() == {"in.x", "in.y", "in.learning_rate"} | {
        f"out.{name}" for name in regression(STATE | drawn(41))
    }
    assert batch_of(found) == 0 and len(found["in.x"]) == 6
    want = regression(STATE | drawn(41))
    assert all(np.array_equal(found[f"out.{name}"], value.numpy()) for name, value in want.items())


def test_a_number_stands_for_state_that_is_proven_from_it() -> None:
    asked = Asked()
    found = made(file=asked, typical={"w": 0.25})
    assert found["in.w"].tolist() == 0.25
    assert asked.values[0]["w"].tolist() == [0.25, 0.25] and asked.values[0]["head.bias"].tolist() == [0.5]
    want = regression({**STATE, "w": torch.full((2,), 0.25), **drawn(41)})
    np.testing.assert_array_equal(found["out.loss"], want["loss"].numpy())


def off(values: Mapping[str, Tensor], size: float) -> Values:
    """The right answers, the loss off by a part of itself."""
    right = regression(values)
    return right | {"loss": right["loss"] * (1 + size)}


def test_a_batch_on_which_the_file_is_wrong_is_passed_over() -> None:
    """The first two; of the third on it is right within the tolerance."""
    wrong = {tuple(drawn(41 + i)["y"].tolist()): 2e-4 for i in range(2)}
    assert batch_of(made(file=lambda values: off(values, wrong.get(tuple(values["y"].tolist()), 0.9e-4)))) == 2
    with pytest.raises(ParityError) as caught:
        made(file=lambda values: off(values, 2e-4))
    assert caught.value.message == (
        "program 'train', check 'golden': 'loss' differs from PyTorch by 0.0002 (relative), "
        "over the tolerance of 0.0001"
    )


def steep(parts: Mapping[int, float]) -> Answer:
    """PyTorch's loss jumps by a part of itself where anything is moved: in batches of these numbers."""
    exact = {i: drawn(41 + i) for i in range(8)}

    def answer(values: Mapping[str, Tensor]) -> Values:
        for i, batch in exact.items():
            near = torch.allclose(values["x"].double(), batch["x"].double(), atol=1e-4)
            if near and not torch.equal(values["x"], batch["x"]):
                return off(values, parts.get(i, 0.0))
        return regression(values)

    return answer


def test_the_first_batch_is_taken_where_rounding_decides_nothing() -> None:
    assert batch_of(made(steep({}))) == 0
    assert batch_of(made(steep({0: 0.5, 1: 0.4, 2: 0.3}))) == 3


def test_else_the_one_where_it_decides_least() -> None:
    parts = dict.fromkeys(range(8), 0.5) | {5: 0.2, 6: 0.3}
    assert batch_of(made(steep(parts))) == 5


def test_where_rounding_decides_everything_in_each_the_first_is_taken() -> None:
    assert batch_of(made(steep(dict.fromkeys(range(8), float("inf"))))) == 0
