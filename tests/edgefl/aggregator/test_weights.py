"""Weight rules: numbers by hand, what each needs, and a person's own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefl.aggregator.checks import check_ask
from edgefl.aggregator.fusion import shares
from edgefl.aggregator.weights import RULES, load_rule, rule_named, rule_of
from edgefl.bundle import Bundle
from edgefl.errors import ConfigError, EdgeflError, RemoteProtocolError
from edgefl.manifest import Manifest, Output
from edgefl.method import Ask, Chosen, Reply, Task
from edgefl.own_code import own


def reply(examples: int = 10, **metrics: float) -> Reply:
    return Reply("pi-1", 0, examples, {}, {f"train.{name}": value for name, value in metrics.items()})


def refusal(rule: str, sent: Reply) -> str:
    with pytest.raises(RemoteProtocolError) as refused:
        rule_named(rule).weigh(sent)
    assert "\n" not in refused.value.message
    return refused.value.message


@pytest.mark.parametrize(
    ("rule", "weight"),
    [("examples", 10), ("equal", 1), ("examples*steps", 80), ("examples/residual", 200), ("learned", 10)],
)
def test_rules_by_hand(rule: str, weight: float) -> None:
    """10 examples, 8 steps, residual 0.04: 10 * 8, and 10 / (0.01 + 0.04)."""
    assert rule_named(rule).weigh(reply(10, solver_steps=8, residual=0.04)) == pytest.approx(weight)


@pytest.mark.parametrize("rule", RULES)
@given(counts=st.lists(st.integers(1, 10_000), min_size=1, max_size=8), steps=st.floats(1, 64), left=st.floats(0, 2))
def test_equal_budgets_reduce_to_the_weights_of_fedavg(rule: str, counts: list[int], steps: float, left: float) -> None:
    """Where every device solves alike, only its examples count."""
    weights = [rule_named(rule).weigh(reply(n, solver_steps=steps, residual=left)) for n in counts]
    got = shares({str(i): w for i, w in enumerate(weights)})
    like = [1] * len(counts) if rule == "equal" else counts
    assert sum(got.values()) == pytest.approx(1, abs=1e-12)
    assert list(got.values()) == pytest.approx([n / sum(like) for n in like], rel=1e-12)


def test_more_steps_and_less_residual_count_more() -> None:
    few, many = reply(10, solver_steps=2, residual=0.6), reply(10, solver_steps=32, residual=0.01)
    for rule in ("examples*steps", "examples/residual"):
        assert rule_named(rule).weigh(few) < rule_named(rule).weigh(many)


def test_a_solve_without_any_residual_has_a_finite_weight() -> None:
    assert rule_named("examples/residual").weigh(reply(1, residual=0.0)) == 100


def test_replies_without_a_weight_are_refused_in_one_line() -> None:
    missing = "weight rule 'examples*steps' needs metric 'train.solver_steps', which was not sent"
    assert refusal("examples*steps", reply(10, residual=0.1)) == missing
    assert refusal("examples/residual", reply(1, residual=-0.02)) == (
        "weight rule 'examples/residual' gives -100.0; expected above 0"
    )
    assert "gives 0.0" in refusal("examples", reply(0))


def test_an_unknown_rule_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no weight rule is called 'size'") as refused:
        rule_named("size")
    assert refused.value.hint is not None and "examples/residual" in refused.value.hint


def test_a_rule_has_numbers() -> None:
    """10 / (0.01 + 0.04) by default, 10 / (0.36 + 0.04) with an epsilon of one's own."""
    sent = reply(10, residual=0.04)
    assert rule_of("examples/residual").weigh(sent) == pytest.approx(200)
    rule = rule_of({"name": "examples/residual", "epsilon": 0.36})
    assert rule.weigh(sent) == pytest.approx(25) and rule.metrics == ("train.residual",)


@pytest.mark.parametrize(
    ("chosen", "message", "hint"),
    [
        ({"name": "examples/residual", "epsilon": 0}, "'examples/residual': epsilon: Expected `float` > 0.0", None),
        (
            {"name": "examples/residual", "eps": 1},
            "'examples/residual': unknown number 'eps'",
            "did you mean 'epsilon'?",
        ),
        ({"name": "equal", "power": 1}, "'equal': unknown number 'power'", "weight rule 'equal' has none"),
    ],
)
def test_numbers_that_a_rule_has_not(chosen: Chosen, message: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as refused:
        rule_of(chosen)
    assert (refused.value.message, refused.value.hint) == (f"weight rule {message}", hint)


def test_a_method_may_bring_a_function() -> None:
    def root(reply: Reply) -> float:
        return reply.examples**0.5

    rule = rule_of(root)
    assert (rule.name, rule.weigh(reply(16)), rule.of_examples) == ("root", 4, False)


# --- what a bundle must have --------------------------------------------------------------------------------------


def with_outputs(manifest: Manifest, *names: str, shape: tuple[int, ...] = ()) -> Manifest:
    train = manifest.program("train")
    outputs = (*train.outputs, *(Output(name, "float32", shape, "mean") for name in names))
    programs = {**manifest.programs, "train": msgspec.structs.replace(train, outputs=outputs)}
    return msgspec.structs.replace(manifest, programs=programs)


def test_a_bundle_that_does_not_measure_what_a_rule_needs_is_refused(regression: Bundle) -> None:
    ask = Ask((Task("train"),), {}, weight="examples/residual")
    with pytest.raises(ConfigError, match="'examples/residual' needs 'residual' of program 'train'") as refused:
        check_ask(ask, regression.manifest)
    assert refused.value.hint is not None and 'weight = "examples"' in refused.value.hint
    check_ask(ask, with_outputs(regression.manifest, "residual"))
    with pytest.raises(ConfigError, match="does not measure"):
        check_ask(ask, with_outputs(regression.manifest, "residual", shape=(2,)))  # no metric: two numbers
    with pytest.raises(ConfigError, match="does not measure"):  # the round does not train
        check_ask(Ask((Task("evaluate"),), {}, weight=ask.weight), with_outputs(regression.manifest, "residual"))


def test_learned_weights_need_a_program_that_gives_gradients(regression: Bundle) -> None:
    ask = Ask((Task("train"),), {}, weight="learned")
    with pytest.raises(ConfigError, match="'learned' needs program 'gradient', which bundle 'regression'") as refused:
        check_ask(ask, regression.manifest)
    assert refused.value.hint == "export it with --programs train,gradient,evaluate,predict"


# --- a rule of one's own ------------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    path = folder / "weights.py"
    path.write_text(text)
    return path


def test_own_rules_are_told_by_their_file() -> None:
    assert own("weights.py:mine") == (Path("weights.py"), "mine")
    assert own("/a/b:c/my weights.py:mine") == (Path("/a/b:c/my weights.py"), "mine")
    assert [own(name) for name in ("examples", "examples/residual", "weights.py", "w.py:", "w.txt:f")] == [None] * 5


def test_a_function_of_a_reply(tmp_path: Path) -> None:
    path = write(tmp_path, "import math\ndef mine(reply):\n    return math.sqrt(reply.examples)\n")
    for rule in (load_rule(path, "mine", "weights.py:mine"), rule_of(f"{path}:mine")):
        assert rule.name == "weights.py:mine"
        assert rule.weigh(reply(16)) == 4


def test_numbers_are_the_further_arguments(tmp_path: Path) -> None:
    path = write(tmp_path, "def mine(reply, power=1, *, floor: int):\n    return reply.examples**power + floor\n")
    assert rule_of({"name": f"{path}:mine", "power": 0.5, "floor": 3}).weigh(reply(16)) == 7
    assert rule_of({"name": f"{path}:mine", "floor": 3}).weigh(reply(16)) == 19
    for numbers, said in (
        ({}, "floor is missing"),
        ({"floor": 0.5}, "floor: Expected `int`, got `float`"),
        ({"reply": 1}, "unknown number 'reply'"),
    ):
        with pytest.raises(ConfigError, match=f"^weight rule 'weights.py:mine': {said}"):
            rule_of({"name": f"{path}:mine", **numbers})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("float('nan')", "gives nan; expected above 0"),
        ("-1", "gives -1.0; expected above 0"),
        ("np.inf", "gives inf; expected above 0"),
        ("None", "failed: TypeError"),
        ("reply.metrics['train.x']", "reads 'train.x', which was not sent"),
    ],
)
def test_what_it_gives_wrong_refuses_the_reply(tmp_path: Path, body: str, said: str) -> None:
    rule = load_rule(write(tmp_path, f"import numpy as np\ndef mine(reply): return {body}\n"), "mine", "w.py:mine")
    with pytest.raises(RemoteProtocolError) as refused:
        rule.weigh(reply())
    assert refused.value.message.startswith(f"weight rule 'w.py:mine' {said}")
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module\n", "weights.py cannot be imported: ModuleNotFoundError: No module named"),
        ("def mine(reply\n", "weights.py cannot be imported: SyntaxError"),
        ("def miner(reply): return 1\n", "no 'mine' in weights.py"),
        ("mine = 3\n", "'mine' in weights.py is no function"),
    ],
)
def test_a_file_that_does_not_give_the_function(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(EdgeflError) as refused:
        load_rule(write(tmp_path, text), "mine", "weights.py:mine")
    assert isinstance(refused.value, ConfigError)
    assert refused.value.message.startswith(f"weight rule 'weights.py:mine': {said}")
    assert "\n" not in refused.value.message
    if "miner" in text:
        assert refused.value.hint == "did you mean 'miner'?"


def test_what_own_rules_see_is_the_reply_as_it_came(tmp_path: Path) -> None:
    text = "def mine(reply): return float(abs(reply.tensors['w']).sum()) + len(reply.device)\n"
    sent = Reply("pi-1", 3, 5, {"w": np.array([-2, 3], np.float32)}, {})
    assert load_rule(write(tmp_path, text), "mine", "m").weigh(sent) == 9
