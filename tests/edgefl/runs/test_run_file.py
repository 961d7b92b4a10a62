"""Run files: every wrong key names the nearest right one, every wrong value its place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgefl.errors import ConfigError
from edgefl.methods.fedavg import FedAvg
from edgefl.runs.run_file import make_method, parse_run_file, read_run_file, to_toml
from edgefl.runs.sections import RunFile

FULL = """
name = "digits"
bundle = "digits.bundle"
seed = 7
runs = "out"

[broker]
url = "mqtts://example.org:8883"
ca = "ca.pem"
cert = "me.pem"
key = "me.key"

[method]
name = "fedavg"
rounds = 5
epochs = 2
batch_size = 16
learning_rate = 0.05

[round]
fraction = 0.5
min_devices = 4
quorum = 0.75
deadline_s = 120

[evaluate]
data = "digits"
target_accuracy = 0.95

[fleet]
devices = 8
data = "data/digits.npz"
partition = "dirichlet"
alpha = 0.5
"""
EXAMPLES = Path(__file__).parents[3] / "examples"


def parse(text: str) -> RunFile:
    return parse_run_file(text, where="run.toml")


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        parse(text)
    assert refused.value.message.startswith("run.toml: ")
    assert "\n" not in refused.value.message
    return refused.value


def test_a_full_run_file() -> None:
    run = parse(FULL)
    assert (run.name, run.seed, run.runs) == ("digits", 7, "out")
    assert (run.round.fraction, run.round.min_devices, run.round.quorum, run.round.deadline_s) == (0.5, 4, 0.75, 120.0)
    assert run.evaluate is not None and run.evaluate.target_accuracy == 0.95
    assert run.fleet is not None and (run.fleet.devices, run.fleet.alpha) == (8, 0.5)
    method = make_method(run, {"w": np.zeros(2, np.float32)}, where="run.toml")
    assert isinstance(method, FedAvg)
    assert (method.rounds, method.epochs, method.batch_size, method.learning_rate) == (5, 2, 16, 0.05)
    assert method.seed == 7  # the run's, unless [method] says another


def test_the_least_run_file_has_defaults() -> None:
    run = parse('name = "a"\nbundle = "b"\n')
    assert (run.round.fraction, run.round.quorum, run.round.min_devices) == (1.0, 0.5, 1)
    assert (run.broker.url, run.evaluate, run.fleet) == (None, None, None)
    method: Any = make_method(run, {}, where="run.toml")
    assert (method.rounds, method.seed) == (10, 0)


def test_the_methods_own_seed_wins() -> None:
    run = parse('name = "a"\nbundle = "b"\nseed = 1\n[method]\nseed = 2\n')
    method: Any = make_method(run, {}, where="run.toml")
    assert method.seed == 2


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.toml")), ids=lambda path: path.name)
def test_the_examples_are_run_files(path: Path) -> None:
    read_run_file(path)


# --- unknown keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "wrong", "section"),
    [
        ("seed", "sede", ""),
        ("bundle", "bundel", ""),
        ("[round]", "[rounds]", ""),
        ("[fleet]", "[flete]", ""),
        ("[method]", "[metod]", ""),
        ("url", "uri", "broker"),
        ("deadline_s", "deadline", "round"),
        ("min_devices", "min_device", "round"),
        ("target_accuracy", "target_acuracy", "evaluate"),
        ("partition", "partitions", "fleet"),
        ("learning_rate", "learn_rate", "method"),
        ("batch_size", "batchsize", "method"),
    ],
)
def test_an_unknown_key_names_the_nearest(right: str, wrong: str, section: str) -> None:
    error = refusal(FULL.replace(f"\n{right}", f"\n{wrong}"))
    place = f" in [{section}]" if section else ""
    assert error.message == f"run.toml: unknown key {wrong.strip('[]')!r}{place}"
    assert error.hint == f"did you mean {right.strip('[]')!r}?"


def test_an_unknown_key_with_nothing_near_lists_the_known() -> None:
    assert str(refusal(FULL.replace("\nfraction", "\nzzz")).hint) == (
        "known: below_quorum, deadline_s, fraction, max_devices, max_norm, max_share, min_devices, patience_s, quorum"
    )


@pytest.mark.parametrize(
    ("wrong", "what"), [("min_devices = 40", "[round] min_devices is 40"), ("devices = 80", "[fleet] devices is 80")]
)
def test_more_devices_than_a_run_takes(wrong: str, what: str) -> None:
    text = FULL.replace("min_devices = 4", "min_devices = 4\nmax_devices = 30")
    key = wrong.split(" ")[0]
    text = "\n".join(wrong if line.startswith(f"{key} =") else line for line in text.splitlines())
    error = refusal(text)
    assert error.message == f"run.toml: {what}, but the run takes at most 30 devices"
    assert error.hint == f"set max_devices = {wrong.split()[-1]} in [round]"


def test_a_run_that_is_to_stop_says_when() -> None:
    error = refusal(FULL.replace("min_devices = 4", 'min_devices = 4\nbelow_quorum = "stop"'))
    assert error.message == "run.toml: [round] below_quorum is 'stop', but patience_s is 0: the run waits for ever"
    assert error.hint == "set patience_s = 600 in [round]"


def test_the_weights_are_no_setting() -> None:
    error = refusal(FULL.replace("\nepochs", "\ninitial"))
    assert error.message == "run.toml: unknown key 'initial' in [method]"


def test_an_unknown_method_names_the_nearest() -> None:
    error = refusal(FULL.replace('"fedavg"', '"fed-avg"'))
    assert (error.message, error.hint) == ("run.toml: [method] name is 'fed-avg'", "did you mean 'fedavg'?")


# --- wrong values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "wrong", "place"),
    [
        ('name = "digits"', 'name = "Digits"', "name: "),
        ('name = "digits"', 'name = "a/b"', "name: "),
        ('name = "digits"', 'name = "digits\\n"', "name: "),
        ('name = "digits"', f'name = "{"x" * 21}"', "name: "),
        ("seed = 7", 'seed = "7"', "seed: "),
        ("seed = 7", "seed = -1", "seed: "),
        ("seed = 7", "seed = 1.5", "seed: "),
        ("fraction = 0.5", "fraction = 0", "round.fraction: "),
        ("fraction = 0.5", "fraction = 1.5", "round.fraction: "),
        ("fraction = 0.5", 'fraction = "half"', "round.fraction: "),
        ("fraction = 0.5", "fraction = nan", "round.fraction is nan"),
        ("quorum = 0.75", "quorum = -0.1", "round.quorum: "),
        ("min_devices = 4", "min_devices = 0", "round.min_devices: "),
        ("deadline_s = 120", "deadline_s = 0", "round.deadline_s: "),
        ("deadline_s = 120", "deadline_s = inf", "round.deadline_s is inf"),
        ("target_accuracy = 0.95", "target_accuracy = 95", "evaluate.target_accuracy: "),
        ("devices = 8", "devices = 0", "fleet.devices: "),
        ("devices = 8", "devices = 1001", "fleet.devices: "),
        ("alpha = 0.5", "alpha = 0.0", "fleet.alpha: "),
        ("rounds = 5", "rounds = 0", "[method]: rounds: "),
        ("learning_rate = 0.05", "learning_rate = 0.0", "[method]: learning_rate: "),
        ("learning_rate = 0.05", "learning_rate = inf", "method.learning_rate is inf"),
        ("learning_rate = 0.05", "decay = 0.9", "[method]: decay needs a learning_rate"),
        ("batch_size = 16", 'batch_size = "all"', "[method]: batch_size: "),
        ("epochs = 2", 'send_as = "gradient"', "[method]: send_as: "),
    ],
)
def test_a_wrong_value_names_its_place(line: str, wrong: str, place: str) -> None:
    assert f"\n{line}\n" in FULL
    assert refusal(FULL.replace(f"\n{line}\n", f"\n{wrong}\n")).message.startswith(f"run.toml: {place}")


@pytest.mark.parametrize(
    ("setting", "said", "hint"),
    [
        ('fusion = "medain"', "no fusion is called 'medain'", "did you mean 'median'?"),
        ("fusion = 3", "fusion: Expected `str | object`, got `int`", None),
        (
            'fusion = { name = "trimmed_mean", trim = 0.7 }',
            "fusion 'trimmed_mean': trim: Expected `float` < 0.5",
            None,
        ),
        (
            'fusion = { name = "median", trim = 0.1 }',
            "fusion 'median': unknown number 'trim'",
            "fusion 'median' has none",
        ),
        ('weight = "size"', "no weight rule is called 'size'", "known: examples"),
    ],
)
def test_unknown_fusions_and_weights_are_refused_before_the_run(setting: str, said: str, hint: str | None) -> None:
    error = refusal(FULL.replace("\nepochs = 2\n", f"\n{setting}\n"))
    assert error.message == f"run.toml: [method]: {said}"
    assert error.hint == hint or (hint is not None and str(error.hint).startswith(hint))


def test_a_fusion_has_numbers() -> None:
    chosen = parse(FULL.replace("\nepochs = 2\n", '\nfusion = { name = "trimmed_mean", trim = 0.2 }\n'))
    assert parse(to_toml(chosen)).method["fusion"] == {"name": "trimmed_mean", "trim": 0.2}
    with pytest.raises(ConfigError, match="weight 'learned' is of a mean, not of fusion 'median'"):
        parse('name = "a"\nbundle = "b"\n[method]\nweight = "learned"\nfusion = "median"\n')


def test_a_weight_rule_of_ones_own_is_found_beside_the_run_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('name = "a"\nbundle = "b"\n[method]\nweight = "rules/weights.py:mine"\n')
    assert read_run_file(path).method["weight"] == f"{tmp_path.resolve()}/rules/weights.py:mine"


def test_learned_weights_need_held_out_examples() -> None:
    text = 'name = "a"\nbundle = "b"\n[method]\nweight = "learned"\n'
    for section in ("", '[evaluate]\ndata = "digits"\n'):
        error = refusal(text + section)
        assert error.message == "run.toml: weight 'learned' needs held-out examples on the aggregator"
        assert error.hint == "set held_out = 500 in [evaluate]"
    assert parse(text + '[evaluate]\ndata = "digits"\nheld_out = 500\n').method["weight"] == "learned"


def test_exactly_one_of_bundle_and_model() -> None:
    for text in ('name = "a"\n', 'name = "a"\nbundle = "b"\nmodel = "m.py:model"\n'):
        assert "either `bundle` or `model`" in refusal(text).message


def test_a_missing_value_names_its_place() -> None:
    assert "missing required field `name`" in refusal('bundle = "b"\n').message
    assert refusal('name = "a"\nbundle = "b"\n[fleet]\ndevices = 2\n').message.startswith("run.toml: fleet: ")


def test_a_section_that_is_no_table() -> None:
    assert refusal('name = "a"\nbundle = "b"\nround = 3\n').message == "run.toml: round: Expected `object`, got `int`"


def test_text_that_is_not_toml() -> None:
    assert refusal("name = ").message.startswith("run.toml: not TOML: ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_run_file(tmp_path / "run.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_run_file(tmp_path)
    (tmp_path / "run.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        read_run_file(tmp_path / "run.toml")


# --- paths and back -----------------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(FULL)
    run = read_run_file(tmp_path / "run.toml")
    assert run.bundle == str(tmp_path / "digits.bundle")
    assert (run.broker.ca, run.broker.key) == (str(tmp_path / "ca.pem"), str(tmp_path / "me.key"))
    assert run.fleet is not None and run.fleet.data == str(tmp_path / "data" / "digits.npz")
    assert run.evaluate is not None and run.evaluate.data == "digits"  # a named data set is no path


def test_paths_of_an_export_are_relative_to_the_file_too(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\n")

    def options(said: str) -> dict[str, object]:
        text = f'name = "n"\n[[bundle]]\nmodel = "zoo:digits"\noptions = {{ {said} }}\n'
        (tmp_path / "run.toml").write_text(text)
        return read_run_file(tmp_path / "run.toml").bundles[0].options

    assert options('classes = "classes.txt", data = "parts"') == {
        "classes": str(tmp_path / "classes.txt"),
        "data": str(tmp_path / "parts"),
    }
    assert options('classes = "cat,dog", data = "digits"') == {"classes": "cat,dog", "data": "digits"}


def test_a_model_of_the_zoo_is_no_path(tmp_path: Path) -> None:
    for model, read in (("zoo:digits", "zoo:digits"), ("m.py:model", f"{tmp_path / 'm.py:model'}")):
        (tmp_path / "run.toml").write_text(f'name = "a"\nmodel = "{model}"\n')
        assert read_run_file(tmp_path / "run.toml").model == read


@pytest.mark.parametrize("text", [FULL, 'name = "a"\nmodel = "zoo:digits"\n'])
def test_written_out_and_read_again_it_is_the_same(text: str) -> None:
    run = parse(text)
    assert parse(to_toml(run)) == run
    assert msgspec.to_builtins(parse(to_toml(run))) == msgspec.to_builtins(run)


def test_numbers_survive_being_written_out() -> None:
    run = parse(FULL.replace("0.05", repr(math.pi / 100)))
    assert parse(to_toml(run)).method["learning_rate"] == math.pi / 100


MANY = """
name = "fedmrl"

[method]
name = "fedmrl"

[[bundle]]
path = "bundles/large.bundle"
for = "memory_mb >= 2000 and cores >= 4"
settings = { outer_weight = 2.0 }

[[bundle]]
model = "nets.py:tiny"
options = { method = "fedmrl", small = "nets.py:small", d1 = 100 }
devices = ["pi-*"]
name = "little"

[[bundle]]
model = "zoo:digits"

[fleet]
devices = 4
data = "digits"

[[fleet.profile]]
memory_mb = 4000
cores = 8

[[fleet.profile]]
settings = { max_steps = 4 }
"""


def test_many_bundles(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(MANY)
    run = read_run_file(path)
    large, little, zoo = run.bundles
    assert (large.class_name, large.path) == ("large", str(tmp_path.resolve() / "bundles/large.bundle"))
    assert large.condition == "memory_mb >= 2000 and cores >= 4" and large.settings == {"outer_weight": 2.0}
    assert (little.class_name, little.model) == ("little", f"{tmp_path.resolve()}/nets.py:tiny")
    assert little.options == {"method": "fedmrl", "small": f"{tmp_path.resolve()}/nets.py:small", "d1": 100}
    assert little.devices == ("pi-*",) and (zoo.class_name, zoo.model) == ("digits", "zoo:digits")
    assert run.fleet is not None
    assert [(p.memory_mb, p.cores, p.settings) for p in run.fleet.profile] == [
        (4000, 8, {}),
        (None, None, {"max_steps": 4.0}),
    ]
    assert parse(to_toml(run)) == run
    assert [(one.class_name, one.path) for one in parse('name = "a"\nbundle = "b.bundle"').bundles] == [
        ("b", "b.bundle")
    ]


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("for =", "four =", "unknown key 'four' in [bundle]"),
        ("memory_mb = 4000", "memory = 4000", "unknown key 'memory' in [fleet.profile]"),
        ("memory_mb = 4000", "memory_mb = 0", "fleet.profile[0].memory_mb"),
        ("outer_weight = 2.0", "outer_weight = inf", "bundle.0.settings.outer_weight is inf"),
        ('path = "bundles/large.bundle"', 'path = "a"\nmodel = "b"', "[[bundle]] 'a': give either `path` or `model`"),
        ('path = "bundles/large.bundle"\n', "", "[[bundle]] '': give either `path` or `model`"),
        ('model = "nets.py:tiny"', 'path = "x"', "[[bundle]] 'little': options are for making a bundle of a `model`"),
        ('name = "little"', 'name = "digits"', "two [[bundle]] are called 'digits'"),
        ('name = "little"', 'name = "../up"', "bundle[1].name"),
        ("cores >= 4", "cores >= four", "cannot read 'cores >= four'"),
        ('model = "zoo:digits"', 'model = "zoo:digits"\ndevices = "pi-1"', "bundle[2].devices"),
        ('name = "fedmrl"\n\n', 'name = "fedmrl"\nmodel = "zoo:digits"\n', "give either `bundle` or `model`"),
    ],
)
def test_bundles_that_cannot_be(right: str, wrong: str, said: str) -> None:
    assert right in MANY
    error = refusal(MANY.replace(right, wrong, 1))
    assert said in error.message, error.message
