"""Bundles for the laws of methods: the one made by hand, and small networks as the exporter makes them. Connections to
a real broker, over a line that can be cut."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from relay import Relay

import edgefl_broker
from edgefl import bundle as bundles
from edgefl.address import Address
from edgefl.bundle import Bundle
from edgefl.mqtt import Connection
from edgefl_broker import RunningBroker


@pytest.fixture
def broker() -> Iterator[RunningBroker]:
    with edgefl_broker.start() as running:
        yield running


@pytest.fixture
def relay(broker: RunningBroker) -> Iterator[Relay]:
    relay = Relay(broker.port)
    yield relay
    relay.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., Connection]]:
    """Make a connection to a port of this machine; all are closed with the test."""
    opened: list[Connection] = []

    def connect(port: int, name: str, *topics: str) -> Connection:
        connection = Connection(Address("127.0.0.1", port), name)
        connection.subscribe(*topics)
        opened.append(connection)
        connection.connect()
        return connection

    yield connect
    for connection in opened:
        connection.close(timeout_s=1.0)


@pytest.fixture(scope="session")
def make_bundle(regression: Bundle, once: Callable[..., Path]) -> Callable[[str], Bundle]:
    """A bundle by its name in `exported`, or "regression". Each is made once, when it is first wanted."""

    @functools.cache
    def make(name: str) -> Bundle:
        if name == "regression":
            return regression
        return bundles.read(once(name, lambda folder: exported(name, folder / f"{name}.bundle")) / f"{name}.bundle")

    return make


def exported(name: str, out: Path) -> Bundle:
    """ "layers": a body and a head; "pushed": with a momentum of 0.5; "anchored" and "controlled": with the terms of
    FedProx and SCAFFOLD; "shifted": with FedDyn's; "shallow" and "deep": classifiers for FedProto; "solved": an
    equilibrium."""
    from layers import (  # torch takes seconds to import; most tests here need none
        export_classifier,
        export_equilibrium,
        export_layers,
    )

    from edgefl_exporter import SGD

    if name in ("shallow", "deep"):
        return export_classifier(out, deep=name == "deep")
    if name == "solved":
        return export_equilibrium(out)
    if name == "pushed":
        return export_layers(out, optimizer=SGD(0.1, momentum=0.5))
    method = {"controlled": "scaffold", "shifted": "feddyn"}.get(name, "fedavg")
    options = {"proximal": 0.0} if name == "anchored" else {}
    return export_layers(out, method=method, **options)
