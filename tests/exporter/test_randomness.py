"""Random numbers of a program: the hash is good, the same everywhere, and a net with dropout trains as in PyTorch."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from edgefl.replay import Runner
from edgefl_exporter import SGD, export
from edgefl_exporter.lowering.lower import lower
from edgefl_exporter.models.randomness import hashed

COUNT = 100_000
VECTORS = Path(__file__).parents[1] / "vectors"


def sample(seed: int, step: int, site: int) -> npt.NDArray[np.float32]:
    return hashed(seed, step, site, (COUNT,))


def test_the_first_numbers_are_these() -> None:
    """For whoever writes the hash in another language."""
    words = hashed(7, 3, 1, (2, 2)) * 2**24
    assert words.tolist() == [[13290139.0, 433965.0], [11268205.0, 7067361.0]]


def test_the_vectors_are_what_their_script_makes() -> None:
    """random.json, which other languages read; regenerating it gives the same bytes."""
    made = runpy.run_path(str(VECTORS / "make_random.py"))["text"]()
    assert made == (VECTORS / "random.json").read_text()


@pytest.mark.parametrize("key", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (-5, 10**9, 12)])
def test_numbers_are_uniform(key: tuple[int, int, int]) -> None:
    u = sample(*key)
    assert u.min() >= 0 and u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=4 * 0.289 / COUNT**0.5)
    counts, _ = np.histogram(u, 64, (0, 1))
    assert ((counts - COUNT / 64) ** 2 / (COUNT / 64)).sum() < 120  # chi square, 63 degrees of freedom: 1e-5
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / COUNT**0.5
    assert abs(np.corrcoef(u[:-512], u[512:])[0, 1]) < 4 / COUNT**0.5


def test_seeds_steps_and_sites_are_independent() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0), (0, 2, 0), (0, 0, 1), (0, 0, 2), (1, 1, 1), (2**31, 0, 0)]
    correlations = np.corrcoef([sample(*key) for key in keys])
    assert np.abs(correlations - np.eye(len(keys))).max() < 4.5 / COUNT**0.5
    masks = np.array([sample(*key) < 0.5 for key in keys])
    agree = (masks[:, None] == masks[None, :]).mean(-1)[~np.eye(len(keys), dtype=bool)]
    assert np.abs(agree - 0.5).max() < 4.5 * 0.5 / COUNT**0.5


@pytest.mark.parametrize("shape", [(3, 7), (8, 1, 5), (1,)])
def test_onnx_and_numpy_agree_bit_for_bit(shape: tuple[int, ...]) -> None:
    def step(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            f"u{site}": torch.ops.edgefl.uniform(values["seed"], values["step"], site, values["x"].shape)
            for site in (0, 1, 40)
        }

    scalar = torch.zeros((), dtype=torch.int64)
    example = {"seed": scalar, "step": scalar, "x": torch.zeros(2, *shape[1:])}
    runner = Runner(lower(step, example, batched=["x"], module=nn.Module()))  # type: ignore[arg-type]
    for seed, count in ((0, 0), (1, 2), (-1, 3), (2**31 + 5, 2**31), (2**40 + 1, 2**33)):
        given = {"seed": np.array(seed), "step": np.array(count), "x": np.zeros(shape, np.float32)}
        for site in (0, 1, 40):
            assert np.array_equal(runner.run(given)[f"u{site}"], hashed(seed, count, site, shape))


def masks(tmp_path: Path) -> Runner:
    """A program that shows its mask: one weight per input, dropped with 1/4, and a gradient of +-x/2 where kept."""
    net = nn.Sequential(nn.Dropout(0.25), nn.Linear(64, 2, bias=False))
    bundle = export(net, torch.zeros(2, 64), out=tmp_path / "m.bundle", name="m", programs=("train",))
    program = bundle.manifest.program("train")
    assert "random_step" in program.reads and program.writes["random_step"] == "next.random_step"
    assert bundle.manifest.state[-1].fuse == "local"
    assert [i.source for i in program.inputs if i.name == "seed"] == ["seed"]
    return Runner(bundle.bytes_of(program.file))


def test_a_mask_changes_with_the_step_and_the_seed_and_is_scaled(tmp_path: Path) -> None:
    runner = masks(tmp_path)

    def run(seed: int, step: int) -> npt.NDArray[np.float32]:
        """The weight's gradient by one example of ones, where the logits are equal: -mask/2 for its class."""
        result = runner.run(
            {
                "1.weight": np.zeros((2, 64), np.float32),
                "x": np.ones((1, 64), np.float32),
                "y": np.array([0]),
                "learning_rate": np.array(1, np.float32),
                "seed": np.array(seed),
                "random_step": np.array(step),
            }
        )
        assert result["next.random_step"] == step + 1
        return 2 * result["next.1.weight"][0]

    first = run(0, 0)
    want = np.where(hashed(0, 0, 0, (64,)) < 0.75, np.float32(1 / 0.75), np.float32(0))
    np.testing.assert_allclose(first, want, rtol=1e-6)
    assert np.array_equal(first, run(0, 0))
    assert not np.array_equal(first, run(0, 1)) and not np.array_equal(first, run(1, 0))


def test_a_model_without_randomness_has_neither_seed_nor_step(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Dropout(0.0), nn.Linear(4, 2))
    bundle = export(net, torch.zeros(2, 4), out=tmp_path / "m.bundle", name="m", programs=("train",))
    assert [t.name for t in bundle.manifest.state] == ["1.weight", "1.bias"]
    assert "seed" not in {i.name for i in bundle.manifest.program("train").inputs}


class Noisy(nn.Module):
    """Noise also in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + 0.1 * torch.randn_like(x))  # type: ignore[no-any-return]


def test_noise_in_evaluation_is_fixed_by_seed_and_step(tmp_path: Path) -> None:
    bundle = export(Noisy(), torch.zeros(2, 8), out=tmp_path / "m.bundle", name="m", optimizer=SGD(momentum=0.9))
    predict = bundle.manifest.program("predict")
    assert not predict.writes
    runner = Runner(bundle.bytes_of(predict.file))
    given = {**bundle.weights(), "x": np.zeros((4, 8), np.float32)}
    first = runner.run({**given, "seed": np.array(1)})["logits"]
    assert np.array_equal(first, runner.run({**given, "seed": np.array(1)})["logits"])
    assert not np.array_equal(first, runner.run({**given, "seed": np.array(2)})["logits"])
