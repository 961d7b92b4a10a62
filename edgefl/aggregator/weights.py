"""Weight rules: how much a reply counts, a plain function of what the reply says about itself.

A rule is chosen by name in the run file, `[method] weight = "examples/residual"`, and serves every method. One's own
is named by its file: `weight = "weights.py:mine"`, where `mine` takes a `Reply` and gives a number above 0. Its further
arguments are numbers that the run file may set: `weight = { name = "weights.py:mine", power = 0.5 }`. A method may also
bring a function of its own, in place of a name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from edgefl.aggregator.chosen import load_own, name_of, numbers_of, with_numbers
from edgefl.aggregator.norms import lower_median
from edgefl.errors import ConfigError, RemoteProtocolError, said
from edgefl.method import Chosen, Reply
from edgefl.own_code import own

LEARNED = "learned"


@dataclass(frozen=True)
class Rule:
    """A weight rule, and what it needs: `metrics` of a reply ("PROGRAM.OUTPUT"), `programs` of the bundle.

    of_examples     its weight follows from a device's number of examples alone, so it is known before a reply comes
    """

    name: str
    function: Callable[[Reply], float]
    metrics: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    of_examples: bool = False

    def weigh(self, reply: Reply) -> float:
        """The weight of a reply, above 0. Raises RemoteProtocolError for a reply that has none."""
        for metric in self.metrics:
            if metric not in reply.metrics:
                raise RemoteProtocolError(f"weight rule {self.name!r} needs metric {metric!r}, which was not sent")
        try:
            weight = float(self.function(reply))
        except KeyError as error:  # what a device without test data does not measure, mostly
            raise RemoteProtocolError(
                f"weight rule {self.name!r} reads {error.args[0]!r}, which was not sent"
            ) from error
        except Exception as error:  # a function of somebody's own raises what it likes
            raise RemoteProtocolError(f"weight rule {self.name!r} failed: {said(error)}") from error
        if not math.isfinite(weight) or weight <= 0:
            raise RemoteProtocolError(f"weight rule {self.name!r} gives {weight}; expected above 0")
        return weight


def weight_limit(rule: Rule, stated: Iterable[int], max_share: float) -> float:
    """The most that a reply may count by a rule `of_examples`: `max_share` times the median of what devices with so
    many examples count. 0: no limit."""
    assert rule.of_examples
    weights = [rule.function(Reply("", 0, examples, {}, {})) for examples in stated if examples > 0]
    return max_share * lower_median(weights) if weights else 0.0


def examples(reply: Reply) -> float:
    """FedAvg's weight: the device's number of training examples, n_k."""
    return float(reply.examples)


def equal(reply: Reply) -> float:
    """Every device counts the same."""
    return 1.0


def examples_times_steps(reply: Reply) -> float:
    """n_k K_k: who spent more solver steps on an example counts more."""
    return reply.examples * reply.metrics["train.solver_steps"]


def examples_by_residual(reply: Reply, epsilon: Annotated[float, Meta(gt=0)] = 0.01) -> float:
    """n_k / (epsilon + residual_k): who came nearer to its equilibrium counts more.

    `epsilon` is about the residual at which a solve counts as done: less earns a device no more weight.
    """
    return reply.examples / (epsilon + reply.metrics["train.residual"])


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("examples", examples, of_examples=True),
        Rule("equal", equal, of_examples=True),
        Rule("examples*steps", examples_times_steps, metrics=("train.solver_steps",)),
        Rule("examples/residual", examples_by_residual, metrics=("train.residual",)),
        # Where learning starts: edgefl/aggregator/learned.py
        Rule(LEARNED, examples, programs=("gradient", "evaluate"), of_examples=True),
    )
}


def rule_of(chosen: Chosen | Callable[[Reply], float]) -> Rule:
    """The rule that a run has chosen, by its name or with numbers, or the function that a method brings. Raises
    ConfigError for a name or a number that there is not, or one out of bounds."""
    if callable(chosen):
        return Rule(getattr(chosen, "__name__", type(chosen).__name__), chosen)
    name = name_of(chosen, "weight rule")
    found = own(name)
    rule = rule_named(name) if found is None else load_rule(*found, f"{found[0].name}:{found[1]}")
    return replace(rule, function=with_numbers(rule.function, numbers_of(chosen), f"weight rule {rule.name!r}"))


def rule_named(name: str) -> Rule:
    """A rule of `RULES`. Raises ConfigError with the known names."""
    if name not in RULES:
        raise ConfigError(
            f"no weight rule is called {name!r}", hint=f"known: {', '.join(RULES)}; your own: FILE.py:FUNCTION"
        )
    return RULES[name]


def load_rule(path: Path, function: str, name: str) -> Rule:
    """The rule that is `function` in the Python file `path`, called `name`. Raises ConfigError in one clear line."""
    hint = f"def {function}(reply): return reply.examples"
    return Rule(name, load_own(path, function, f"weight rule {name!r}", hint))
