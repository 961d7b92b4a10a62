"""The commands about brokers: one for this machine, and what any broker has kept of a run."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import click

from edgefl.cli.output import format_option, print_json
from edgefl.cli.teller import Teller, tells
from edgefl.cli.tls import tls_options
from edgefl.errors import BrokerError

if TYPE_CHECKING:
    from edgefl.address import Tls


@click.group(invoke_without_command=True)
@click.option("--port", type=click.IntRange(0, 65535), default=1883, show_default=True, help="0 takes a free one.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--engine", type=click.Choice(["auto", "mosquitto", "iotcore"]), default="auto", show_default=True)
@format_option
@tells
@click.pass_context
def broker(context: click.Context, port: int, host: str, engine: str, form: str, teller: Teller) -> None:
    """Run an MQTT broker for this machine, until Ctrl-C.

    For other machines deploy one with TLS and an access list: see broker/mosquitto/.

    \b
    Example:
      edgefl broker --port 1883
    """
    if context.invoked_subcommand is not None:
        return
    import edgefl_broker

    with edgefl_broker.start(engine, host, port) as running:
        if form == "json":
            print_json({"url": running.url, "engine": running.engine, "version": running.version})
        else:
            click.echo(running.url)
            teller.tell(f"{running.engine} {running.version} serves this machine; Ctrl-C ends it")
        sys.stdout.flush()
        pause = threading.Event()
        try:
            while running.alive():
                pause.wait(0.5)
        except KeyboardInterrupt:
            teller.tell("broker ended")
            return
        said = running.log().strip().splitlines()
        raise BrokerError(f"{running.engine} ended by itself: {said[-1] if said else 'it said nothing'}")


@broker.command()
@click.argument("run")
@click.option("--broker", "url", required=True, envvar="EDGEFL_BROKER", help="mqtt://HOST:PORT, or mqtts://.")
@tls_options
@format_option
def forget(run: str, url: str, tls: Tls, form: str) -> None:
    """Have a broker forget RUN, which is over or dead: no device hears of it any more.

    \b
    Example:
      edgefl broker forget digits-20260102-030405 --broker mqtt://127.0.0.1:1883
    """
    from edgefl.runs.forget import forget as withdraw

    topics = withdraw(run, url, tls=tls)
    if form == "json":
        print_json({"run": run, "forgotten": topics})
        return
    for topic in topics:
        click.echo(f"forgotten: {topic}")
