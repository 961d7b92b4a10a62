"""A method of somebody's own, whose mistakes are one clear line that names its file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from edgefl.errors import ConfigError, EdgeflError, said
from edgefl.method import Ask, Fused, Method, State

Given = TypeVar("Given")


class OwnMethod:
    """A method in place of which ConfigError is raised for what its functions raise or give that they must not.

    `called` names it in errors: "own_method.py:Patient". What else a run asks of it passes through.
    """

    def __init__(self, method: Method, called: str) -> None:
        self._method = method
        self._called = called

    def start(self) -> State:
        return self._checked("start", self._method.start, (State,))

    def ask(self, state: State) -> Ask | None:
        return self._checked("ask", lambda: self._method.ask(state), (Ask, type(None)))

    def advance(self, state: State, fused: Fused) -> State:
        return self._checked("advance", lambda: self._method.advance(state, fused), (State,))

    def _checked(self, verb: str, function: Callable[[], Given], kinds: tuple[type, ...]) -> Given:
        where = f"[method] {self._called!r}: {verb}()"
        try:
            given = function()
        except EdgeflError:
            raise
        except Exception as error:  # it raises what it likes
            raise ConfigError(f"{where} failed: {said(error)}", hint="--debug shows where") from error
        if not isinstance(given, kinds):
            expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ConfigError(f"{where} gave {type(given).__name__}; expected {expected}", hint="see edgefl/method.py")
        return given

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)
