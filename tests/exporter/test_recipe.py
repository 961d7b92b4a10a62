"""One recipe, whoever says it: options are checked without torch, and each method is whole in its own file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import edgefl.cli
import edgefl_exporter
from edgefl.data_contract import Normalisation
from edgefl.errors import ConfigError, InputError
from edgefl_exporter import SGD, Adam, Group, Recipe, export
from edgefl_exporter.methods import METHODS, CoDream, FedMRL, FedProx
from edgefl_exporter.methods.method import Method, NotOfMethod
from edgefl_exporter.models.load_model import Loaded
from edgefl_exporter.options import ALL, Options, checked, options
from edgefl_exporter.programs.losses import LOSSES
from edgefl_exporter.source import recipe_of

MODEL = Loaded(nn.Linear(4, 3), torch.zeros(1, 4))


def test_text_and_python_say_the_same_recipe() -> None:
    said = {
        "method": "codream",
        "dreams": 3,
        "optimizer": "adamw",
        "learning-rate": "0.5",
        "group": "0.*:learning_rate=0.1,weight_decay=0",
        "train": "0.*, 1.*",
        "share_as": ["a.*=b.*"],
        "batch": 16,
        "programs": ["train"],
        "mean": 2,
        "std": "0.5,0.25",
        "range": "-1,1",
        "classes": "cat, dog, owl",
    }
    assert recipe_of(options(checked(said)), MODEL) == Recipe(
        method=CoDream(dreams=3),
        loss=LOSSES["cross_entropy"],
        optimizer=Adam(0.5, decoupled=True),
        groups=(Group(("0.*",), learning_rate=0.1, weight_decay=0.0),),
        train=("0.*", "1.*"),
        share_as={"a.*": "b.*"},
        batch=16,
        programs=("train",),
        normalisation=Normalisation((2.0,), (0.5, 0.25)),
        range=(-1.0, 1.0),
        classes=("cat", "dog", "owl"),
    )


def test_what_nobody_says_is_the_methods() -> None:
    assert recipe_of(options({"method": "fedmrl", "momentum": 0.0}), MODEL).optimizer == SGD(0.01, 0.0, 1e-3)
    recipe, method = Recipe(method="fedprox").complete()
    assert method == FedProx() and recipe.proximal == 0.01
    assert Recipe(method="fedprox", proximal=0.0).complete()[0].proximal == 0.0
    assert FedMRL.sgd() == {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 1e-3}


def test_a_switch_turned_off_is_of_every_method() -> None:
    """So that --no-generator on the command line undoes what stands in pyproject.toml."""
    assert options({"generator": False}) == Options(method=METHODS["fedavg"]())
    assert options({"private": ()}).private == ()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"momentun": 1}, "here: unknown key 'momentun'"),
        ({"seed": -1}, "here: --seed is -1; expected a whole number, at least 0"),
        ({"momentum": 1.5}, "here: --momentum is 1.5; expected a number, at least 0, at most 1"),
        ({"target": "gpu"}, "here: --target is 'gpu'; expected portable or onnxruntime-training"),
        ({"nesterov": "often"}, "here: --nesterov is 'often'; expected true or false"),
        ({"loss": ["mse"]}, "here: --loss is ['mse']; expected a text"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(said: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(said, "here")
    assert caught.value.message == message


def test_options_of_another_method_are_refused_in_text_and_in_python(tmp_path: Path) -> None:
    with pytest.raises(NotOfMethod, match=r"^--d1 is of --method fedmrl$"):
        options({"method": "fedprox", "d1": 3})
    with pytest.raises(NotOfMethod, match=r"^--private is not of --method fedmrl, which decides what is private$"):
        options({"method": "fedmrl", "private": ("*",)})
    for more, message in (
        ({"method": "codream", "private": ("*",)}, "--private is not of --method codream"),
        ({"method": "fedmrl"}, "FedMRL needs the model that all devices share"),
        ({"method": "fedpox"}, "unknown method 'fedpox'"),
        ({"optimiser": SGD()}, "unknown option 'optimiser'"),
    ):
        with pytest.raises(InputError) as caught:
            export(*MODEL[:2], out=tmp_path / "b", name="b", **more)
        assert caught.value.message.startswith(message)
    assert not (tmp_path / "b").exists()


def test_a_method_of_somebodys_own(tmp_path: Path) -> None:
    """What a stranger writes: a class that changes a recipe."""

    class Frozen(Method, frozen=True, kw_only=True):
        name = "frozen"

        def add(self, recipe: Recipe) -> Recipe:
            return Recipe(train=("bias",), programs=recipe.programs)

    bundle = export(*MODEL[:2], out=tmp_path / "b", name="b", method=Frozen(), programs=("train",))
    assert bundle.manifest.method == "frozen"
    assert [tensor.name for tensor in bundle.manifest.shared()] == ["bias"]


def test_options_are_listed_and_checked_without_torch() -> None:
    script = (
        "import sys; from edgefl_exporter.options import checked, options; import edgefl.cli.export;"
        "options(checked({'method': 'codream', 'dreams': 3, 'lora': 2}));"
        "print(*[name for name in ('torch', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_each_option_has_its_help_and_one_owner() -> None:
    assert [name for name, option in ALL.items() if not option.text] == ["optimizer"]  # whose choices say it all
    fields = [name for method in METHODS.values() for name in method.__struct_fields__]
    assert len(fields) == len(set(fields)) and not set(fields) & set(Options.__struct_fields__)


def test_no_method_is_named_outside_methods() -> None:
    """Names in quotes, or as words of the command; programs/ may say in prose whose paper they are from."""
    sources = Path(edgefl_exporter.__file__).parent
    methods = sources / "methods"
    command = Path(edgefl.cli.__file__).parent / "export.py"
    files = [command, *(path for path in sources.rglob("*.py") if not path.is_relative_to(methods))]
    for path in files:
        for name in METHODS:
            word = rf"\b{name}\b" if path == command else rf"\"{name}\"|'{name}'|\bprograms\.{name}\b"
            assert not re.search(word, path.read_text()), f"{path.name} names {name}"
