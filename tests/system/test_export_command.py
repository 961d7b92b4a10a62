"""`edgefl export` with its options, from the command line and from pyproject.toml."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgefl.bundle import read
from edgefl.cli import main
from edgefl.errors import ConfigError
from edgefl_exporter import export_source

MODEL = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), torch.zeros(1, 4)

def forecaster():
    return (*model(), torch.randn(8, 2))

def small(features=2):
    return nn.Sequential(nn.Linear(4, features), nn.ReLU(), nn.Linear(features, 2)), torch.zeros(1, 4)

def pinball(output, labels):
    error = labels - output
    return torch.maximum(0.9 * error, -0.1 * error).mean(1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(MODEL)
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["export", *arguments])


def test_options_stand_in_pyproject_and_the_command_line_wins(folder: Path) -> None:
    (folder / "pyproject.toml").write_text(
        '[tool.edgefl.export]\noptimizer = "adamw"\nlearning-rate = 0.01\ntrain = ["2.*"]\nprograms = ["train"]\n'
        'group = ["2.bias:weight_decay=0"]\n'
    )
    result = run("nets.py:model", "--learning-rate", "0.5", "--clip-norm", "2", "--format", "json")
    assert result.exit_code == 0, result.output
    assert "options of" in result.stderr and "optimizer, learning-rate, train, programs, group" in result.stderr
    shown = json.loads(result.stdout)
    assert list(shown["programs"]) == ["train"]
    program = read(folder / "nets.bundle").manifest
    assert program.program("train").settings() == pytest.approx({"learning_rate": 0.5, "clip_norm": 2.0})
    assert {t.name for t in program.shared()} == {"2.weight", "2.bias"}
    assert {t.name for t in program.state if t.role == "optimizer"} >= {"optimizer.step", "optimizer.square.2.weight"}


def test_the_bundle_says_what_its_classes_are_called_and_where_its_values_lie(folder: Path) -> None:
    (folder / "animals.csv").write_text("0,0.5,0,1,owl\n0,0.5,0,1,cat\n")
    result = run("nets.py:model", "--data", "animals.csv", "--programs", "evaluate", "--format", "json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)["data"]
    assert (data["class_names"], data["features"][0]["range"]) == (["cat", "owl"], [0, 1])
    shown = CliRunner().invoke(main, ["inspect", "nets.bundle"]).output.splitlines()
    assert shown[1:3] == ["data: float32 [4] in 0..1; labels int64, 2 classes", "classes: cat, owl"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--classes", "a,b,c"), "--classes: 3 class names for 2 classes"),
        (("--classes", "a,b", "--loss", "mse"), "--classes: class names, but labels are no class numbers"),
        (("--range", "1,0"), "the range is 1..0; expected two finite numbers, the lower one first"),
        (("--range", "1"), "--range is 1; expected LOW,HIGH"),
        (("--data", "nowhere.csv"), "no data at nowhere.csv"),
    ],
)
def test_names_and_ranges_that_cannot_be(options: tuple[str, ...], said: str, folder: Path) -> None:
    result = run("nets.py:model", *options)
    assert result.exit_code == 3 and f"error: {said}\n" in result.stderr
    assert not (folder / "nets.bundle").exists()


def test_a_loss_of_ones_own(folder: Path) -> None:
    result = run("nets.py:forecaster", "--loss", "nets.py:pinball", "--programs", "evaluate", "-o", "f.bundle")
    assert result.exit_code == 0, result.output
    contract = read(folder / "f.bundle").manifest.data
    assert (contract.labels, contract.labels_dtype, contract.classes) == ((2,), "float32", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "nets.py:pinball"], "needs to know what labels look like\nhint: let the model's function return"),
        (["--loss", "cross_entrpy"], "unknown loss 'cross_entrpy'\nhint: did you mean 'cross_entropy'?"),
        (["--loss", "nets.py:pinbal"], "no 'pinbal' in nets.py\nhint: did you mean 'pinball'?"),
        (["--loss", "mse", "--label-smoothing", "0.1"], "--label-smoothing is of cross_entropy; the loss is mse"),
        (["--optimizer", "adam", "--momentum", "0.9"], "--momentum is of sgd; adam has its own moments"),
        (["--nesterov"], "nesterov needs a momentum"),
        (["--group", "2.*:rate=1"], "'rate' is not learning_rate, weight_decay or clip_norm"),
        (["--group", "head.*:clip_norm=1"], "group 'head.*' matches no trained parameter\nhint: there is: 0.weight"),
        (["--train", "3.*"], "--train '3.*' matches no parameter\nhint: known: 0.weight, 0.bias"),
        (["--batch", "many"], "--batch 'many' is neither dynamic nor a number of examples"),
        (["--programs", "train,dream"], "unknown program 'dream'"),
    ],
)
def test_each_mistake_has_its_line_and_leaves_nothing(folder: Path, arguments: list[str], message: str) -> None:
    result = run("nets.py:model", *arguments)
    assert result.exit_code == 3, result.output
    assert message in result.stderr and "Traceback" not in result.stderr
    assert sorted(p.name for p in folder.iterdir() if p.name != "__pycache__") == ["nets.py", "pyproject.toml"]


def test_fedmrl_has_the_defaults_of_its_paper(folder: Path) -> None:
    given = ["--method", "fedmrl", "--small", "nets.py:small", "--d1", "3", "--local", "nets.py:model"]
    result = run(*given, "--programs", "train")
    assert result.exit_code == 0, result.output
    manifest = read(folder / "fedmrl-nets.bundle").manifest
    assert manifest.program("train").settings() == pytest.approx(
        {"learning_rate": 0.01, "inner_weight": 1.0, "outer_weight": 1.0}
    )
    assert {t.name: t.shape for t in manifest.shared()}["small.extractor.0.weight"] == (3, 4)
    assert "optimizer.momentum.projector.weight" in {t.name for t in manifest.state}
    assert run("nets.py:model", *given[:-2], "--momentum", "0", "--programs", "train").exit_code == 0
    assert "optimizer" not in {t.role for t in read(folder / "fedmrl-nets.bundle").manifest.state}


@pytest.mark.parametrize(
    ("method", "options", "programs", "shared"),
    [
        ("fedprox", (), {"anchor"}, {"0.weight", "0.bias", "2.weight", "2.bias"}),
        ("feddyn", ("--train", "2.*"), {"anchor", "dynamic"}, {"2.weight", "2.bias"}),
        ("scaffold", ("--train", "2.*"), {"control"}, {"2.weight", "2.bias", "control.2.weight", "control.2.bias"}),
        ("fedproto", ("--optimizer", "adam"), {"prototypes"}, {"prototypes", "known"}),
        (
            "codream",
            ("--dreams", "3"),
            {"statistics", "dream", "dream_steps", "label", "distill", "likeness"},
            {"dreams"},
        ),
    ],
)
def test_a_method_brings_its_programs(
    folder: Path, method: str, options: tuple[str, ...], programs: set[str], shared: set[str]
) -> None:
    result = run("nets.py:model", "--method", method, "--programs", "train", *options)
    assert result.exit_code == 0, result.output
    manifest = read(folder / f"{method}-nets.bundle").manifest
    assert manifest.method == method
    assert set(manifest.programs) == {"train", *programs}
    assert {tensor.name for tensor in manifest.shared()} == shared


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing argument 'MODEL'"),
        (["nets.py:model", "--small", "nets.py:small"], 2, "--small is of --method fedmrl"),
        (["nets.py:model", "--dreams", "3"], 2, "--dreams is of --method codream"),
        (["nets.py:model", "--generator"], 2, "--generator is of --method codream"),
        (
            ["nets.py:model", "--method", "codream", "--private", "*"],
            2,
            "--private is not of --method codream, whose models are private anyway",
        ),
        (["--method", "fedmrl", "--small", "nets.py:small"], 2, "needs the device's own model, once"),
        (["--method", "fedmrl", "--local", "nets.py:model"], 2, "needs --small, the model that all devices share"),
        (
            ["--method", "fedmrl", "--small", "nets.py:model", "--d1", "3", "--local", "nets.py:model"],
            3,
            "nets.py:model cannot be made with 3 features: it does not take 'features'",
        ),
        (
            ["--method", "fedmrl", "--small", "zoo:digits", "--local", "nets.py:model"],
            3,
            "zoo:digits takes examples [1, 8, 8] of torch.float32, nets.py:model [4] of torch.float32",
        ),
        (
            ["--method", "fedmrl", "--small", "nets.py:small", "--d1", "9", "--local", "nets.py:model"],
            3,
            "the small model has 9 features before its last layer, the local one only 5",
        ),
    ],
)
def test_mistakes_about_two_models(folder: Path, arguments: list[str], code: int, message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code and message in result.stderr, result.output
    assert not list(folder.glob("*.bundle"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[tool.edgefl.export]\noptimiser = 1\n",
            "[tool.edgefl.export]: unknown key 'optimiser'\nhint: did you mean 'optimizer'?",
        ),
        ('[tool]\nedgefl = "x"\n', "'edgefl' is 'x'; expected the section [tool.edgefl.export]"),
        ('[tool.edgefl.export]\ngroup = ":clip_norm=1"\n', "a group has no pattern for its parameters"),
        ('[tool.edgefl.export]\ngroup = ["2.*:clip_norm=0"]\n', "clip_norm is 0.0; expected a number above 0"),
    ],
)
def test_mistakes_in_pyproject(folder: Path, text: str, message: str) -> None:
    (folder / "pyproject.toml").write_text(text)
    result = run("nets.py:model")
    assert result.exit_code == 3 and message in result.stderr
    assert run("--help").exit_code == 0


def test_options_of_a_run_file_are_those_of_the_command(folder: Path) -> None:
    (folder / "pyproject.toml").write_text("[tool.edgefl.export]\nclip-norm = 1\n")  # not for a run file
    options = {"loss": "nets.py:pinball", "learning-rate": 0.5, "programs": ["train", "evaluate"], "mean": 2}
    told: list[str] = []
    bundle = export_source("nets.py:forecaster", options, folder / "x.bundle", "x", progress=told.append)
    assert bundle.manifest.name == "x" and list(bundle.manifest.programs) == ["train", "evaluate"]
    assert bundle.manifest.program("train").settings() == {"learning_rate": 0.5}
    assert bundle.manifest.data.feature.normalisation.mean == (2.0,)
    assert told[0] == "train (1 of 2): lowering"

    two = {"method": "fedmrl", "small": "nets.py:small", "programs": ["predict"]}
    bundle = export_source("nets.py:model", two, folder / "y.bundle", "y")
    assert bundle.manifest.method == "fedmrl"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimiser": "adam"}, "run.toml, [[bundle]] 2: unknown key 'optimiser'"),
        ({"optimizer": "adan"}, "run.toml, [[bundle]] 2: --optimizer is 'adan'; expected sgd, adam or adamw"),
        ({"method": "fedmrl"}, "run.toml, [[bundle]] 2: --method fedmrl needs --small"),
        ({"method": "fedmlr"}, "run.toml, [[bundle]] 2: --method is 'fedmlr'; expected fedavg, "),
        ({"lora": "x"}, "run.toml, [[bundle]] 2: --lora is 'x'; expected a whole number, at least 1"),
        ({"lora": 0}, "run.toml, [[bundle]] 2: --lora is 0; expected a whole number, at least 1"),
        ({"learning_rate": True}, "run.toml, [[bundle]] 2: --learning-rate is True; expected a number, above 0"),
        ({"label-smoothing": 1.0}, "--label-smoothing is 1.0; expected a number, at least 0, below 1"),
        ({"mean": ["a"]}, "run.toml, [[bundle]] 2: --mean is ['a']; expected a number, or a list of them"),
        ({"programs": [1]}, "run.toml, [[bundle]] 2: --programs is [1]; expected a text, or a list of them"),
        ({"input": "8x"}, "run.toml, [[bundle]] 2: --input '8x' is not a shape"),
        ({"generator": True}, "run.toml, [[bundle]] 2: --generator is of --method codream"),
        ({"batch": 0}, "run.toml, [[bundle]] 2: --batch '0' is neither dynamic nor a number of examples"),
        ({"group": ["0.*:clip_norm=x"]}, "--group '0.*:clip_norm=x': clip_norm is 'x'; expected a number"),
        ({"nesterov": True}, "run.toml, [[bundle]] 2: nesterov needs a momentum"),
    ],
)
def test_mistakes_in_options_of_a_run_file(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        export_source("nets.py:model", options, folder / "x", "x", where="run.toml, [[bundle]] 2")
    assert message in caught.value.message


OWN_METHOD = """
from dataclasses import replace
from edgefl_exporter.methods import Method

class Mine(Method, frozen=True, kw_only=True):
    name = "mine"

    def add(self, recipe):
        return replace(recipe, private=("2.*", *recipe.private))

class Nameless(Method, frozen=True, kw_only=True):
    pass

class Other:
    name = "other"
"""


def test_a_method_of_ones_own_by_its_file(folder: Path) -> None:
    (folder / "own.py").write_text(OWN_METHOD)
    result = run("nets.py:model", "--method", "own.py:Mine", "--programs", "train")
    assert result.exit_code == 0, result.output
    manifest = read(folder / "mine-nets.bundle").manifest
    assert manifest.method == "mine" and {t.name for t in manifest.shared()} == {"0.weight", "0.bias"}
    for name, message in (
        ("Min", "no 'Min' in own.py\nhint: did you mean 'Mine'?"),
        ("Nameless", "--method 'own.py:Nameless' is no method of an export"),
        ("Other", "--method 'own.py:Other' is no method of an export"),
    ):
        refused = run("nets.py:model", "--method", f"own.py:{name}")
        assert refused.exit_code == 3 and message in refused.stderr, refused.output
    assert run("nets.py:model", "--method", "mine").exit_code == 2  # click's own words, with the choices


@pytest.mark.parametrize("words", [["zoo"], ["export", "nothere.py:model"], ["export", "zoo:digit"]])
def test_what_needs_no_torch_does_not_wait_for_it(words: list[str]) -> None:
    code = "import sys; from edgefl.cli import main; main(sys.argv[1:], standalone_mode=False)"
    ran = f"try: exec({code!r})\nexcept Exception: pass\nprint('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{ran}", *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
