"""The command that runs an embedded broker."""

from __future__ import annotations

import sys
import threading

import click

from edgefl.cli.output import format_option, print_json, tell
from edgefl.errors import BrokerError


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=1883, show_default=True, help="0 takes a free one.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--engine", type=click.Choice(["auto", "mosquitto", "iotcore"]), default="auto", show_default=True)
@format_option
def broker(port: int, host: str, engine: str, form: str) -> None:
    """Run an MQTT broker for this machine, until Ctrl-C.

    For other machines deploy one with TLS and an access list: see broker/mosquitto/.

    \b
    Example:
      edgefl broker --port 1883
    """
    import edgefl_broker

    with edgefl_broker.start(engine, host, port) as running:
        if form == "json":
            print_json({"url": running.url, "engine": running.engine, "version": running.version})
        else:
            click.echo(running.url)
            tell(f"{running.engine} {running.version} serves this machine; Ctrl-C ends it")
        sys.stdout.flush()
        pause = threading.Event()
        try:
            while running.alive():
                pause.wait(0.5)
        except KeyboardInterrupt:
            tell("broker ended")
            return
        said = running.log().strip().splitlines()
        raise BrokerError(f"{running.engine} ended by itself: {said[-1] if said else 'it said nothing'}")
