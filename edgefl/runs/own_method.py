"""A method of somebody's own, whose mistakes are one clear line that names its file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgefl.errors import ConfigError, EdgeflError, said
from edgefl.method import Ask, Fused, Method, State, WithModel, Work, Worked


def guarded(method: Method, called: str) -> Method:
    """The method, such that ConfigError is raised for what its functions raise or give that they must not.

    `called` names it in errors: "own_method.py:Patient". What else a run asks of it passes through.
    """
    kind = OwnMethodWithModel if isinstance(method, WithModel) else OwnMethod
    return kind(method, called)


class OwnMethod:
    """See `guarded`."""

    def __init__(self, method: Any, called: str) -> None:
        self._method = method
        self._called = called

    def start(self) -> State:
        given: State = self._checked("start", self._method.start, (State,))
        return given

    def ask(self, state: State) -> Ask | None:
        given: Ask | None = self._checked("ask", lambda: self._method.ask(state), (Ask, type(None)))
        return given

    def advance(self, state: State, fused: Fused) -> State:
        given: State = self._checked("advance", lambda: self._method.advance(state, fused), (State,))
        return given

    def _checked(self, verb: str, function: Callable[[], Any], kinds: tuple[type, ...]) -> Any:
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


class OwnMethodWithModel(OwnMethod):
    """See `guarded`."""

    def work(self, state: State) -> Work | None:
        given: Work | None = self._checked("work", lambda: self._method.work(state), (Work, type(None)))
        return given

    def worked(self, state: State, done: Worked) -> State:
        given: State = self._checked("worked", lambda: self._method.worked(state, done), (State,))
        return given
