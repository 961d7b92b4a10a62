"""The options that name certificates (for mqtts), of the commands that reach a broker."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def tls_options(command: F) -> F:
    """--ca, --cert and --key, for mqtts. The command gets `tls`."""

    @click.option("--ca", type=click.Path(path_type=Path), help="Certificate (PEM) of the authority to trust.")
    @click.option("--cert", type=click.Path(path_type=Path), help="Our own certificate (PEM), for mutual TLS.")
    @click.option("--key", type=click.Path(path_type=Path), help="Key of --cert.")
    @wraps(command)
    def with_tls(*given: Any, ca: Path | None, cert: Path | None, key: Path | None, **more: Any) -> Any:
        from edgefl.address import Tls

        return command(*given, tls=Tls(ca, cert, key), **more)

    return with_tls  # type: ignore[return-value]
