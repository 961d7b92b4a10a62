"""A stranger's method, fusion and weight rule: found beside the run file, kept in the run directory, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefl.errors import ConfigError
from edgefl.method import Fused, State, WithModel, Worked
from edgefl.methods import METHODS, method_named
from edgefl.methods.fedavg import FedAvg
from edgefl.runs.own_method import guarded
from edgefl.runs.prepare import with_own_code_kept
from edgefl.runs.run_file import make_method, parse_run_file, read_run_file, to_toml
from edgefl.runs.sections import RunFile

MINE = """
from __future__ import annotations
from typing import Annotated
import msgspec
from msgspec import Meta
from edgefl.aggregator.fusion import Coordinates
from edgefl.methods.fedavg import FedAvg

class Half(FedAvg, frozen=True):
    part: Annotated[float, Meta(gt=0, le=1)] = 0.5

class Bare(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    initial: dict
    def start(self): ...
    def ask(self, state): ...
    def advance(self, state, fused): ...

class Mute(msgspec.Struct, frozen=True):
    initial: dict
    def start(self): ...
    def advance(self, state, fused): ...

class Blank(Mute, frozen=True):
    def ask(self, state): ...

class Rootless(msgspec.Struct, frozen=True):
    def start(self): ...
    def ask(self, state): ...
    def advance(self, state, fused): ...

class Odd(FedAvg, frozen=True):
    part: NoSuchType = 1

class Plain:
    initial = {}

class Least(Coordinates):
    def combine(self, values):
        return values.min(axis=0)

def by_power(reply, power: float = 1.0):
    return reply.examples**power
"""
RUN = """
name = "own"
bundle = "b"
[method]
name = "code/mine.py:Half"
part = 0.25
rounds = 3
fusion = "code/mine.py:Least"
weight = { name = "code/mine.py:by_power", power = 0.5 }
"""


def write(folder: Path) -> Path:
    (folder / "code").mkdir()
    (folder / "code" / "mine.py").write_text(MINE)
    path = folder / "run.toml"
    path.write_text(RUN)
    return path


def made(config: RunFile) -> Any:
    return make_method(config, {"w": np.zeros(2, np.float32)}, where="run file")


def test_own_code_is_found_beside_the_run_file_and_serves_like_ours(tmp_path: Path) -> None:
    config = read_run_file(write(tmp_path))
    code = f"{tmp_path.resolve()}/code/mine.py"
    assert config.method["name"] == f"{code}:Half"
    assert config.method["fusion"] == f"{code}:Least"
    assert config.method["weight"] == {"name": f"{code}:by_power", "power": 0.5}
    method = made(config)
    assert isinstance(method, FedAvg) and type(method).__name__ == "Half"
    assert (method.part, method.rounds) == (0.25, 3)  # type: ignore[attr-defined]
    assert parse_run_file(to_toml(config), where="again") == config


def test_a_run_goes_on_with_the_code_that_it_began_with(tmp_path: Path) -> None:
    config, place = read_run_file(write(tmp_path)), tmp_path / "runs" / "own-1"
    place.mkdir(parents=True)
    kept = with_own_code_kept(config, place)
    assert sorted(p.name for p in place.iterdir()) == ["fusion.py", "method.py", "weights.py"]
    assert kept.method["name"] == f"{place.resolve()}/method.py:Half"
    assert kept.method["weight"] == {"name": f"{place.resolve()}/weights.py:by_power", "power": 0.5}
    (tmp_path / "code" / "mine.py").write_text("Half = Least = by_power = None")
    moved = place.rename(tmp_path / "elsewhere")
    again = with_own_code_kept(kept, moved)
    assert again.method["fusion"] == f"{moved.resolve()}/fusion.py:Least"
    assert made(again).part == 0.25


def test_without_the_file_and_without_a_copy_no_run_begins(tmp_path: Path) -> None:
    config = read_run_file(write(tmp_path))
    (tmp_path / "code" / "mine.py").unlink()
    with pytest.raises(ConfigError, match=r"^\[method\] name 'mine.py:Half': no file .*/code/mine.py$") as refused:
        with_own_code_kept(config, tmp_path)
    assert refused.value.hint == "its path is seen from the run file"


def test_a_run_file_without_own_code_stays_as_it_is(tmp_path: Path) -> None:
    config = parse_run_file('name = "a"\nbundle = "b"\n[method]\nfusion = "median"\n', where="run.toml")
    assert with_own_code_kept(config, tmp_path) == config
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("Hlaf", ": no 'Hlaf' in mine.py", "did you mean 'Half'?"),
        ("Plain", " is no method: expected a class that is a msgspec.Struct", "derive it from FedAvg"),
        ("by_power", " is no method: expected a class that is a msgspec.Struct", "derive it from FedAvg"),
        ("Mute", " is no method: it has no 'ask'", "derive it from FedAvg"),
        ("Rootless", " is no method: it has no 'initial'", "derive it from FedAvg"),
        ("Odd", ": its fields have types that cannot be read: NameError: name 'NoSuchType'", "derive it from FedAvg"),
    ],
)
def test_a_class_that_is_no_method_is_refused_in_one_line(tmp_path: Path, name: str, message: str, hint: str) -> None:
    write(tmp_path)
    with pytest.raises(ConfigError) as refused:
        method_named(f"{tmp_path}/code/mine.py:{name}")
    assert refused.value.message.startswith(f"[method] 'mine.py:{name}'{message}")
    assert refused.value.hint is not None and refused.value.hint.startswith(hint)


def test_a_method_needs_no_more_than_three_functions_and_what_to_begin_with(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text('name = "a"\nbundle = "b"\nseed = 3\n[method]\nname = "code/mine.py:Bare"\n')
    assert list(made(read_run_file(path)).initial) == ["w"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("part = 2.0", "[method]: part: Expected `float` <= 1.0"),
        ("prat = 0.5", "unknown key 'prat' in [method]"),
        ('fusion = "code/mine.py:by_power"', "[method]: fusion 'mine.py:by_power' failed: TypeError"),
        ('weight = { name = "code/mine.py:by_power", pwer = 1 }', "unknown number 'pwer'"),
    ],
)
def test_wrong_settings_of_own_code_are_refused_before_the_run(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path)
    path.write_text(f'name = "a"\nbundle = "b"\n[method]\nname = "code/mine.py:Half"\n{line}\n')
    with pytest.raises(ConfigError) as refused:
        made(read_run_file(path))
    assert refused.value.message.startswith("run file: ") and message in refused.value.message


def test_names_of_ours_are_found_as_before() -> None:
    assert all(method_named(name) is kind for name, kind in METHODS.items())
    with pytest.raises(ConfigError, match=r"\[method\] name is 'fedvag'") as refused:
        method_named("fedvag")
    assert refused.value.hint == "did you mean 'fedavg'?"


def failing(**functions: Any) -> Any:
    """Somebody's FedAvg, in which some functions are others."""
    return guarded(type("Mine", (FedAvg,), functions, frozen=True)(initial={"w": np.zeros(2)}), "mine.py:Mine")


def test_what_the_functions_of_a_method_raise_or_give_is_one_line() -> None:
    def divide(*arguments: object) -> float:
        return 1 / 0

    fused = Fused({"w": np.ones(2)}, {}, ("pi-1",), 1)
    for verb, arguments in (("start", ()), ("ask", (State(0, {}),)), ("advance", (State(0, {}), fused))):
        with pytest.raises(ConfigError, match="division by zero") as refused:
            getattr(failing(**{verb: divide}), verb)(*arguments)
        assert refused.value.message.startswith(f"[method] 'mine.py:Mine': {verb}() failed: ZeroDivisionError")
        with pytest.raises(ConfigError, match=f"{verb}.. gave int; expected ") as refused:
            getattr(failing(**{verb: lambda *arguments: 3}), verb)(*arguments)


def test_a_method_without_mistakes_is_as_it_was() -> None:
    method = failing()
    state = method.start()
    plain = FedAvg(initial=dict(state.tensors))
    assert method.ask(state) == plain.ask(plain.start())
    assert method.rounds == 10  # what else a run asks for passes through
    assert method.ask(State(10, state.tensors)) is None


def test_a_method_with_a_model_stays_one() -> None:
    taught = failing(work=lambda self, state: None, worked=lambda self, state, done: 3)
    assert isinstance(taught, WithModel) and not isinstance(failing(), WithModel)
    assert taught.work(taught.start()) is None
    with pytest.raises(ConfigError, match="worked.. gave int; expected State"):
        taught.worked(taught.start(), Worked({}, {}))
