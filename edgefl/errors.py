"""Every error edgefl raises on purpose, and the exit code the command line gives it.

    EdgeflError                 exit 1    the root; also: a proof or a run that failed
    |-- InputError              exit 3    a file, a model, data or an option that cannot be used
    |   |-- BundleError                   a bundle that is damaged, too new or does not fit
    |   |-- DataError                     data that does not fit the bundle's data contract
    |   |-- ConfigError                   a run file with an unknown key or a wrong value
    |   `-- LoweringError                 a model that cannot become a program
    |-- BrokerError             exit 4    a broker that is unreachable or refuses us
    |   |-- NoBroker                      one that is not there now; another attempt may find it
    |   `-- NameTaken                     another process uses our name there
    |-- ProtocolError           exit 5    bytes on the wire that break the protocol
    |   |-- RemoteProtocolError           they broke it
    |   `-- LocalProtocolError            we would have broken it
    |-- NotFinite               exit 1    numbers that are no numbers any more: what was computed has diverged
    |-- ParityError             exit 6    a program that does not compute what PyTorch computes
    `-- BelowQuorum             exit 7    a run that too few devices answer, for as long as it was told to wait; saved

An interrupted command (Ctrl-C, SIGTERM) exits 130; wrong usage exits 2 (click's own).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

MOST_CHARACTERS = 2000  # of a message, and of a hint
# What moves the cursor, ends a line or turns the direction of the text: C0, DEL, C1, the Arabic letter mark, zero-width
# direction marks, line and paragraph separators, embeddings, overrides and isolates, a lone surrogate.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str, limit: int = MOST_CHARACTERS) -> str:
    """`text` as one line of at most `limit` characters that shows what it holds and does nothing to a terminal.

    A line break, with the blanks around it, becomes a space; any other control character its escape, such as \\x1b.
    """
    line = " ".join(part for piece in re.split("[\r\n]", text) if (part := piece.strip(" \t")))
    line = _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), line[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "\u2026"


def first_line(error: BaseException) -> str:
    """The first line of what somebody else's error says; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def said(error: BaseException) -> str:
    """What somebody else's error says, as one clause: "ValueError: its first line"."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.5, most: int = 20) -> str | None:
    """The hint for a name that is not known: "did you mean ...?", or, where none is near, which there are."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(names[:most])}" if names else None


class EdgeflError(Exception):
    """One clear line for a person, and a hint: what to do next.

    `message` names the thing, the place, what was expected and what came. Whatever it quotes, both stay one line each.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = one_line(message)
        self.hint = hint if hint is None else one_line(hint)
        super().__init__(self.message)


class InputError(EdgeflError):
    """A file, a model, data or an option that cannot be used."""

    exit_code = 3


class BundleError(InputError):
    """A bundle that is damaged, of a newer format, or does not fit."""


class DataError(InputError):
    """Data that does not fit the bundle's data contract."""


class ConfigError(InputError):
    """A run file with an unknown key or a wrong value."""


class LoweringError(InputError):
    """A model that cannot become a program; names the operator and its module."""


class BrokerError(EdgeflError):
    """A broker that is unreachable, or that refuses us."""

    exit_code = 4


class NoBroker(BrokerError):
    """A broker that is not there, or not now: another attempt may find it."""


class NameTaken(BrokerError):
    """Another process uses our name on the broker, which lets only one of the two be connected."""


class ProtocolError(EdgeflError):
    """Bytes or messages that break the protocol."""

    exit_code = 5


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol."""


class LocalProtocolError(ProtocolError):
    """Our side was about to break the protocol."""


class NotFinite(EdgeflError):
    """Numbers that are no numbers any more: what was computed has diverged."""


class ParityError(EdgeflError):
    """A program that does not compute what PyTorch computes."""

    exit_code = 6


class BelowQuorum(EdgeflError):
    """Too few devices, for as long as the run was told to wait for more. Everything is saved."""

    exit_code = 7
