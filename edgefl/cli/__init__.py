"""The command line. One file per group of commands; the only place that wires the packages together, lazily."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import Any

import click

from edgefl import __version__
from edgefl.errors import EdgeflError

# name -> its module, and what the list of commands says: neither the list nor a device process imports the others
_COMMANDS = {
    "demo": ("run", "See it all: 8 devices learn digits."),
    "export": ("export", "Compile a PyTorch model to a proven bundle."),
    "inspect": ("bundle", "Show what is in a bundle."),
    "verify": ("bundle", "Repeat the parity proof on this machine."),
    "model": ("bundle", "Make one file that predicts."),
    "zoo": ("bundle", "List models to start from."),
    "doctor": ("doctor", "Say what a model asks of a device."),
    "split": ("data", "Cut a data set into one part per device."),
    "broker": ("broker", "Run an MQTT broker for this machine."),
    "aggregate": ("run", "Run the aggregator against an MQTT broker."),
    "device": ("device", "Be a device: train, send updates."),
    "run": ("run", "Run broker, aggregator and emulated fleet here."),
    "report": ("report", "Write the report of a run again."),
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

        module, _ = _COMMANDS[name]
        command: click.Command = getattr(import_module(f"edgefl.cli.{module}"), name)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in _COMMANDS.items()])

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

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 bad input, 4 broker, 5 protocol, 6 proof failed, 130 interrupted
    (Ctrl-C, or SIGTERM as of `kill` and `systemctl stop`).
    """
    with contextlib.suppress(ValueError):  # beside the main thread nobody can
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
