"""Weight rules: how much a reply counts, a plain function of what the reply says about itself.

A rule is chosen by name in the run file, `[method] weight = "examples/residual"`, and serves every method. One's own
is named by its file: `weight = "weights.py:mine"`, where `mine` takes a `Reply` and gives a number above 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from edgefl import own_code
from edgefl.aggregator.norms import lower_median
from edgefl.errors import ConfigError, InputError, RemoteProtocolError, said
from edgefl.method import Reply

LEARNED = "learned"
EPSILON = 0.01  # about the residual at which a solve counts as done: less earns a device no more weight


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


def examples_by_residual(reply: Reply) -> float:
    """n_k / (epsilon + residual_k): who came nearer to its equilibrium counts more."""
    return reply.examples / (EPSILON + reply.metrics["train.residual"])


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


def rule_named(name: str) -> Rule:
    """A rule of `RULES`. Raises ConfigError with the known names."""
    if name not in RULES:
        raise ConfigError(
            f"no weight rule is called {name!r}", hint=f"known: {', '.join(RULES)}; your own: FILE.py:FUNCTION"
        )
    return RULES[name]


def load_rule(path: Path, function: str, name: str) -> Rule:
    """The rule that is `function` in the Python file `path`, called `name`. Raises ConfigError in one clear line."""
    try:
        found = own_code.load(path, function, called=path.name)
    except InputError as error:
        hint = error.hint or f"def {function}(reply): return reply.examples"
        raise ConfigError(f"weight rule {name!r}: {error.message}", hint=hint) from error
    if not callable(found):
        raise ConfigError(f"weight rule {name!r}: {function!r} in {path.name} is no function")
    return Rule(name, found)
