"""FILE:OBJECT and zoo:NAME, and the one clear line for each way to get them wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgefl.errors import InputError
from edgefl_exporter import load_model

SOURCE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

def model():
    return Net(), torch.zeros(1, 1, 8, 8)

def plain():
    return Net()

def broken():
    raise RuntimeError("no weights here")

number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(SOURCE)
    return path


def test_a_function_class_or_zoo_name_gives_model_and_example(file: Path) -> None:
    for source, shape in ((f"{file}:model", None), (f"{file}:plain", (1, 8, 8)), (f"{file}:Net", (64,))):
        module, example, *_ = load_model(source, shape)
        assert isinstance(module, nn.Module) and module.training
        assert module(torch.cat([example] * 3)).shape == (3, 10)
    assert load_model("zoo:digits")[1].shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("source", "shape", "message", "hint"),
    [
        ("{file}", None, "is not FILE:OBJECT or zoo:NAME", "examples/digits.py:model"),
        ("{folder}/net.py:model", None, "no file", "did you mean 'nets.py'"),
        ("{file}:modle", None, "no 'modle' in", "did you mean 'model'"),
        ("{file}:broken", None, "failed: RuntimeError: no weights here", "without arguments"),
        ("{file}:number", None, "gives int; expected a torch.nn.Module", "function"),
        ("{file}:plain", None, "without an example input", "--input"),
        ("{file}:plain", (1, 9, 9), r"fails on an input of shape \[batch, 1, 9, 9\]", "--input"),
        ("zoo:digit", None, "no model 'digit' in the zoo", "did you mean 'digits'"),
    ],
)
def test_each_mistake_has_its_line(
    file: Path, source: str, shape: tuple[int, ...] | None, message: str, hint: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_model(source.format(file=file, folder=file.parent), shape)
    assert "\n" not in caught.value.message and caught.value.hint is not None and hint in caught.value.hint
