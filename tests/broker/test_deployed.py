"""The configuration that a person deploys: broker/mosquitto/, with certificates made by its README's own commands."""

from __future__ import annotations

import gc
import re
import shutil
import socket
import ssl
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgefl import patience, protocol
from edgefl.address import Address, Tls
from edgefl.errors import BrokerError
from edgefl_device.data.dataset import Dataset, Splits
from edgefl_device.options import Options
from edgefl_device.participate import participate

SOURCE = Path(__file__).parents[2] / "broker" / "mosquitto"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ca, server, aggregator, pi-3 and pi-4, each .crt and .key."""
    if shutil.which("openssl") is None:
        pytest.fail("openssl is not installed, and broker/mosquitto/README.md needs it")
    directory = tmp_path_factory.mktemp("certificates")
    authority, server, device, _start = commands()
    run(authority, directory)
    run(server.replace("broker.example", "localhost"), directory)
    for name in ("aggregator", "pi-3", "pi-4"):
        run(device.replace("pi-3", name), directory)
    return directory


@pytest.fixture
def port(mosquitto: str, certificates: Path, tmp_path: Path) -> Iterator[int]:
    """Where a mosquitto with edgefl.conf listens; only paths and the port are replaced."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = (SOURCE / "edgefl.conf").read_text()
    for name in ("ca.crt", "server.crt", "server.key"):
        text = text.replace(f"/etc/mosquitto/edgefl/{name}", str(certificates / name))
    text = text.replace("/etc/mosquitto/edgefl/acl", str(SOURCE / "acl"))
    text = text.replace("listener 8883", f"listener {port} 127.0.0.1")
    assert f"listener {port}" in text and not re.search(r"^[^#].*/etc/mosquitto", text, re.MULTILINE)
    config = tmp_path / "edgefl.conf"
    config.write_text(text + "\nuser root\n")  # ignored unless we are root, who would become a user without our files
    with open(tmp_path / "log", "wb") as log, subprocess.Popen([mosquitto, "-c", config], stderr=log) as broker:
        try:
            deadline = time.monotonic() + 30
            while not accepts(port):
                assert broker.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            yield port
        finally:
            broker.terminate()


@pytest.fixture
def join(port: int, certificates: Path, client: Callable[..., object]) -> Callable[..., object]:
    """`join(name)`: a client connected with that name's certificate."""

    def connect(name: str, client_id: str = ""):
        joined = client(None, client_id=client_id)
        joined.paho.tls_set(
            str(certificates / "ca.crt"), str(certificates / f"{name}.crt"), str(certificates / f"{name}.key")
        )
        code, _ = joined.connect(f"mqtts://localhost:{port}")
        assert not code.is_failure, code
        return joined

    return connect


def test_a_device_and_the_aggregator_speak_on_their_topics(join) -> None:
    aggregator, device = join("aggregator"), join("pi-3")
    up, presence = protocol.up_topic("mnist", "pi-3"), protocol.device_topic("mnist", "pi-3")
    for topic in (protocol.up_topic("mnist", "+"), protocol.device_topic("mnist", "+")):
        assert not aggregator.subscribe(topic).is_failure
    for topic in (up, presence):
        assert not device.publish(topic, b"hello").is_failure
        assert aggregator.next().topic == topic

    down = [
        protocol.round_topic("mnist"),
        protocol.aggregator_topic("mnist"),
        protocol.down_topic("mnist", "pi-3"),
        protocol.blob_topic("mnist", "ab" * 32),
    ]
    for topic in down:
        assert not device.subscribe(topic).is_failure
        assert not aggregator.publish(topic, bytes(protocol.MAX_FRAME_BYTES)).is_failure
        message = device.next()
        assert message.topic == topic and len(message.payload) == protocol.MAX_FRAME_BYTES


@pytest.mark.parametrize(
    "topic",
    [
        protocol.up_topic("mnist", "pi-4"),
        protocol.device_topic("mnist", "pi-4"),
        protocol.down_topic("mnist", "pi-3"),
        protocol.round_topic("mnist"),
        protocol.aggregator_topic("mnist"),
        protocol.blob_topic("mnist", "ab" * 32),
    ],
)
def test_a_device_may_not_write(topic: str, join) -> None:
    device = join("pi-3")
    assert device.publish(topic, b"forged").value == 135  # not authorized


@pytest.mark.parametrize(
    ("wish", "secret"),
    [
        (protocol.down_topic("mnist", "pi-4"), protocol.down_topic("mnist", "pi-4")),
        (protocol.down_topic("mnist", "+"), protocol.down_topic("mnist", "pi-4")),
        (protocol.up_topic("mnist", "+"), protocol.up_topic("mnist", "pi-4")),
        (protocol.device_topic("mnist", "pi-4"), protocol.device_topic("mnist", "pi-4")),
        ("#", protocol.down_topic("mnist", "pi-4")),
    ],
)
def test_a_device_may_not_read(wish: str, secret: str, join) -> None:
    """mosquitto grants the subscription and delivers nothing, so a message that may be read marks the end."""
    aggregator, device = join("aggregator"), join("pi-3")
    device.subscribe(wish)
    device.subscribe(protocol.down_topic("mnist", "pi-3"))
    aggregator.publish(secret, b"secret")
    aggregator.publish(protocol.down_topic("mnist", "pi-3"), b"marker")
    assert device.next().payload == b"marker"


def test_a_device_cannot_kick_another_off(join) -> None:
    victim = join("pi-3", client_id="pi-3")
    join("pi-4", client_id="pi-3")
    victim.subscribe(protocol.round_topic("mnist"))  # still answered
    assert victim.disconnected.empty()


def test_without_a_certificate_of_the_fleet_nobody_gets_in(port: int, certificates: Path) -> None:
    context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    with socket.create_connection(("localhost", port), timeout=30) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as secured:
                secured.sendall(b"\x10\x0f\0\4MQTT\5\2\0\12\0\0\2hi")
                answer = secured.recv(1)  # TLS 1.3 tells of the refusal here
        except OSError:
            answer = b""
    assert answer == b"", "the broker answered"


def commands() -> list[str]:
    """The README's command blocks."""
    text = (SOURCE / "README.md").read_text()
    return [textwrap.dedent(block) for block in re.findall(r"(?:^ {7}.+\n)+", text, re.MULTILINE)]


def run(script: str, directory: Path) -> None:
    done = subprocess.run(["sh", "-euc", script], cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


@pytest.fixture
def options(port: int, certificates: Path, tmp_path: Path) -> Options:
    """A device that is called pi-9, and has the certificate of pi-3."""
    files = Tls(certificates / "ca.crt", certificates / "pi-3.crt", certificates / "pi-3.key")
    data = Splits(Dataset(np.ones((1, 2), np.float32), np.ones(1, np.float32)), None)
    return Options(Address.parse(f"mqtts://localhost:{port}"), "pi-9", data, tmp_path / "state", run="lab", tls=files)


def test_a_name_that_the_certificate_does_not_have_is_refused(options: Options) -> None:
    with pytest.raises(BrokerError, match="refuses a message: Not authorized") as refused:
        participate(options, lambda line: None)
    assert refused.value.hint == "check its access list, and that our name is the one of our certificate"


def test_a_device_for_ever_waits_until_its_name_is_allowed(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tries again and again, and says so once."""
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if len(lines) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        participate(replace(options, forever=True), log)
    here = f"connected to {options.broker}; waiting for the aggregator of run lab"
    refused = f"the broker at {options.broker} refuses a message: Not authorized: trying again"
    assert lines[0] == lines[2] == lines[3] == here
    assert lines[1] == f"{refused} (check its access list, and that our name is the one of our certificate)"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho does not close its socket
def test_an_authority_that_is_not_trusted_is_not_waited_for(options: Options) -> None:
    """It would not be trusted later either."""
    with pytest.raises(BrokerError, match="CERTIFICATE_VERIFY_FAILED") as refused:
        participate(replace(options, tls=None), lambda line: None)
    assert refused.value.hint == "check --ca, and that the port speaks TLS"
    gc.collect()  # here, where the warning is expected
