"""The command line. One file per group of commands; the only place that wires the packages together, lazily."""

from __future__ import annotations

import sys
from typing import Any

import click

from edgefl import __version__
from edgefl.errors import EdgeflError

# name -> (module, function): a device process must not import what only an exporter needs
_COMMANDS = {
    "demo": ("run", "demo"),
    "export": ("export", "export"),
    "inspect": ("bundle", "inspect"),
    "verify": ("bundle", "verify"),
    "model": ("bundle", "model"),
    "zoo": ("bundle", "zoo"),
    "doctor": ("doctor", "doctor"),
    "split": ("data", "split"),
    "broker": ("broker", "broker"),
    "aggregate": ("run", "aggregate"),
    "device": ("device", "device"),
    "run": ("run", "run"),
    "report": ("report", "report"),
}

# package -> the extra that brings it
_EXTRAS = {
    "torch": "exporter",
    "onnxscript": "exporter",
    "onnx_ir": "exporter",
    "onnx": "aggregator",
    "onnxruntime": "device",
    "sklearn": "demo",
}


class _Commands(click.Group):
    """Imports a command's module when it is used, and prints our errors as two lines."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        from importlib import import_module

        module, function = _COMMANDS[name]
        command: click.Command = getattr(import_module(f"edgefl.cli.{module}"), function)
        return command

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except EdgeflError as error:
            if context.params.get("debug"):
                raise
            click.echo(f"error: {error.message}", err=True)
            if error.hint:
                click.echo(f"hint: {error.hint}", err=True)
            context.exit(error.exit_code)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None or context.params.get("debug"):
                raise
            click.echo(f"error: this command needs the package {error.name}", err=True)
            click.echo(f"hint: pip install 'edgefl[{extra}]'", err=True)
            context.exit(3)
        except OSError as error:
            if context.params.get("debug") or isinstance(error, BrokenPipeError):  # click ends `| head` quietly
                raise
            click.echo(f"error: {error.filename or 'the system'}: {error.strerror or error}", err=True)
            context.exit(3)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            context.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgefl")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Federated learning on phones and boards.

    Export a PyTorch model, run an aggregator against an MQTT broker, let devices train. `edgefl demo` shows all of it.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 bad input, 4 broker, 5 protocol, 6 proof failed, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
