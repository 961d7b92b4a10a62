"""`--install` of a command: the same command as a systemd service."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from edgefl.errors import ConfigError
from edgefl.service import SECRETS, UNITS, Service, install, secrets, secrets_of, unit

F = TypeVar("F", bound=Callable[..., Any])

_OURS = ("install", "printed")


def install_options(command: F) -> F:
    """`--install` and `--print`."""
    command = click.option("--print", "printed", is_flag=True, help="With --install: show it, change nothing.")(command)
    return click.option(
        "--install", is_flag=True, help="Run this as a systemd service, now and with the machine; as root."
    )(command)


def words(context: click.Context, *, leave_out: Collection[str] = (), paths: Collection[str] = ()) -> list[str]:
    """The options and arguments that were given to this command, as words; paths that are there become whole.

    `paths`: options that may be one, beside those that always are.
    """
    found: list[str] = []
    for param in context.command.params:
        name = param.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not given or name in leave_out or name in _OURS:
            continue
        value = context.params[name]
        is_path = isinstance(param.type, click.Path) or name in paths
        for one in value if param.multiple else (value,):
            word = str(Path(one).resolve()) if is_path and Path(one).exists() else str(one)
            if isinstance(param, click.Argument):
                found.append(word)
            else:
                found += [param.opts[0]] if getattr(param, "is_flag", False) else [param.opts[0], word]
    return found


def install_or_print(service: Service, *, printed: bool, tell: Callable[[str], None]) -> None:
    """Install a service; or print its files, secrets as stars."""
    if not printed:
        install(service, tell)
        return
    click.echo(f"# {UNITS / service.name}.service")
    click.echo(unit(service))
    if service.environment:
        click.echo(f"# {secrets_of(service)}, mode 600, in {SECRETS}, mode 700")
        click.echo("".join(line.partition("=")[0] + "=...\n" for line in secrets(service).splitlines()), nl=False)


def check_print(install: bool, printed: bool) -> None:
    """Raises ConfigError for `--print` alone."""
    if printed and not install:
        raise ConfigError("--print shows what --install would do", hint="give both")
