"""A port of this machine that answers each MQTT connection with bytes that a test has written down."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from edgefl.address import Address

ACCEPTED = b"\x20\x03\x00\x00\x00"  # CONNACK of MQTT 5: length, flags, reason, length of properties


def refusal(reason: int) -> bytes:
    """A CONNACK that says no."""
    return bytes([0x20, 3, 0, reason, 0])


def goodbye(reason: int) -> bytes:
    """A DISCONNECT."""
    return bytes([0xE0, 2, reason, 0])


@dataclass
class Scripted:
    """What was said to it: one CONNECT a connection, then all that came until the connection ended."""

    address: Address
    connects: list[bytes] = field(default_factory=list)
    heard: queue.SimpleQueue[bytes] = field(default_factory=queue.SimpleQueue)


@contextmanager
def scripted(*answers: bytes, hang_up: bool = False) -> Iterator[Scripted]:
    """Give each connection in turn the next answer, when its CONNECT has come. The last is kept open, or hung up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        broker = Scripted(Address("127.0.0.1", server.getsockname()[1]))

        def serve() -> None:
            for number, answer in enumerate(answers, 1):
                with server.accept()[0] as client, suppress(OSError):
                    broker.connects.append(client.recv(4096))
                    client.sendall(answer)
                    if number == len(answers) and not hang_up:
                        while data := client.recv(4096):
                            broker.heard.put(data)

        serving = threading.Thread(target=serve)
        serving.start()
        yield broker
        serving.join(timeout=20)
        assert not serving.is_alive(), "a connection was not made, or not ended"
