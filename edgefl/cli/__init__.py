"""The command line. One file per group of commands; the only place that wires the packages together, lazily."""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
import traceback
from typing import Any

import click

from edgefl import __version__
from edgefl.errors import EdgeflError, nearest

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
    "check": ("check", "Say whether a run file could run."),
    "broker": ("broker", "Run an MQTT broker for this machine."),
    "aggregate": ("run", "Run the aggregator against an MQTT broker."),
    "device": ("device", "Be a device: train, send updates."),
    "run": ("run", "Run broker, aggregator and emulated fleet here."),
    "report": ("report", "Write the report of a run again."),
}

# package -> the extra that brings it
EXTRAS = {
    "torch": "exporter",
    "onnxscript": "exporter",
    "onnx_ir": "exporter",
    "onnx": "aggregator",
    "onnxruntime": "device",
    "rich": "aggregator",
    "sklearn": "demo",
    "pyarrow": "tables",
    "PIL": "images",
    "iotcore": "broker",
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

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if words and self.get_command(context, words[0]) is None:
            context.fail(f"no command {words[0]!r}; {nearest(words[0], _COMMANDS)}")
        return super().resolve_command(context, words)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in _COMMANDS.items()])

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            _complain(context, "interrupted")
            context.exit(130)
        except Exception as error:
            said = None if context.params.get("debug") else about(error)
            if said is None:
                raise
            message, hint, exit_code = said
            _complain(context, f"error: {message}")
            if hint:
                _complain(context, f"hint: {hint}")
            context.exit(exit_code)


def about(error: Exception) -> tuple[str, str | None, int] | None:
    """What a person is told of an error: message, hint, exit code. None for what is a fault of ours, or click's."""
    match error:
        case EdgeflError():
            return error.message, error.hint, error.exit_code
        case ModuleNotFoundError():
            extra = "exporter" if _exporting(error) else EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                return None
            return f"this command needs the package {error.name}", f"pip install 'edgefl[{extra}]'", 3
        case BrokenPipeError():  # click ends `| head` quietly
            return None
        case OSError():
            place = error.filename2 or error.filename or "the system"
            return f"{place}: {error.strerror or error}", "make room there" if error.errno == errno.ENOSPC else None, 3
    return None


def _exporting(error: BaseException) -> bool:
    """Whether it came up in the exporter, which needs more than the package that it missed first."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").startswith("edgefl_exporter") for frame, _ in frames)


def _complain(context: click.Context, line: str) -> None:
    """A line on stderr, however quiet the command is, and in its log."""
    click.echo(line, err=True)
    if context.obj is not None:
        context.obj.note(line)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgefl")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Federated learning on phones and boards.

    Export a PyTorch model, run an aggregator against an MQTT broker, let devices train. `edgefl demo` shows all of it.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 bad input, 4 broker, 5 protocol, 6 proof failed, 130 interrupted
    (Ctrl-C, SIGTERM).
    """
    with contextlib.suppress(ValueError):  # beside the main thread nobody can
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
