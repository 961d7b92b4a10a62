"""The embedded broker, with both engines: it starts, carries what we send, refuses what it should, and dies with us."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from urllib.parse import urlsplit

import paho.mqtt.client as paho
import pytest

import edgefl_broker
from edgefl import protocol
from edgefl.errors import BrokerError, ConfigError
from edgefl_broker import engines, running

CHUNK = 64 * 2**10


def test_it_serves_both_protocol_versions_and_stops(engine: str, client: Callable[..., object]) -> None:
    with edgefl_broker.start(engine) as broker:
        assert broker.alive() and broker.engine == engine
        assert broker.version.split(".")[0].isdigit()
        assert broker.url == f"mqtt://127.0.0.1:{broker.port}"
        client(broker.url, protocol=paho.MQTTv5)
        client(broker.url_311, protocol=paho.MQTTv311)
        directory = broker._directory
        assert directory.exists()
    assert not broker.alive()
    assert not directory.exists()
    assert not listens(broker.url)
    broker.stop()  # once more is fine


def test_thirteen_megabytes_in_chunks_reach_four_subscribers_intact(engine: str, client) -> None:
    chunks = [index.to_bytes(4, "big") + bytes([index]) * (CHUNK - 4) for index in range(200)]
    large = os.urandom(protocol.MAX_FRAME_BYTES)
    with edgefl_broker.start(engine) as broker:
        subscribers = [client(broker.url) for _ in range(4)]
        for subscriber in subscribers:
            subscriber.subscribe("edgefl/1/test/blob/+")
        publisher = client(broker.url)
        publisher.publish("edgefl/1/test/round", large, retain=True)
        sent = [publisher.paho.publish("edgefl/1/test/blob/ab", chunk, qos=1) for chunk in chunks]

        for subscriber in subscribers:
            got = sorted(subscriber.next().payload for _ in chunks)
            assert sha256(b"".join(got)).digest() == sha256(b"".join(chunks)).digest()
            assert subscriber.received.empty()
        for message in sent:
            message.wait_for_publish(30)
            assert message.is_published()

        late = client(broker.url)
        late.subscribe("edgefl/1/test/round")
        retained = late.next()
        assert retained.payload == large and retained.retain


WILL = """
import sys, paho.mqtt.client as paho
client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
client.on_connect = lambda *_: print("connected", flush=True)
client.will_set("edgefl/1/test/device/pi-3", b"gone", qos=1, retain=True)
client.connect("127.0.0.1", int(sys.argv[1]))
client.loop_forever()
"""


def test_the_will_of_a_killed_client_is_delivered(engine: str, client) -> None:
    with edgefl_broker.start(engine) as broker:
        watcher = client(broker.url)
        watcher.subscribe("edgefl/1/test/device/+")
        with subprocess.Popen([sys.executable, "-c", WILL, str(broker.port)], stdout=subprocess.PIPE) as doomed:
            assert doomed.stdout is not None and doomed.stdout.readline() == b"connected\n"
            doomed.kill()
        will = watcher.next()
        assert (will.topic, will.payload) == ("edgefl/1/test/device/pi-3", b"gone")


PARENT = """
import sys, edgefl_broker
broker = edgefl_broker.start(sys.argv[1])
print(broker.url, broker._directory, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere mosquitto outlives a parent that was killed")
def test_it_dies_with_a_killed_parent(engine: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, engine], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        url, directory = parent.stdout.readline().split()
        assert listens(url)
        parent.kill()
    until(lambda: not listens(url), "the broker ended")
    for name in os.listdir(directory):  # nobody was left to do it
        os.unlink(os.path.join(directory, name))
    os.rmdir(directory)


def test_it_ends_with_a_parent_that_forgot_to_stop_it(engine: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARENT, engine], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    url, directory = done.stdout.split()
    assert done.returncode == 0, done.stderr
    assert not listens(url)
    assert not os.path.exists(directory)


def test_it_outlives_the_thread_that_started_it(engine: str) -> None:
    started: list[edgefl_broker.RunningBroker] = []
    thread = threading.Thread(target=lambda: started.append(edgefl_broker.start(engine)))
    thread.start()
    thread.join()
    with started[0] as broker:
        for _ in range(20):
            assert broker.alive() and listens(broker.url)


def test_a_killed_broker_restarts_on_its_port(engine: str, client) -> None:
    with edgefl_broker.start(engine) as first:
        loser = client(first.url, client_id="pi-3")  # iotcore refuses an empty id that comes back
        os.kill(first.process.pid, signal.SIGKILL)
        loser.disconnected.get(timeout=30)
        assert first.process.wait(10) == -signal.SIGKILL
        assert not first.alive()
        with edgefl_broker.start(engine, port=first.port) as second:
            assert second.url == first.url
            code, _ = loser.connack.get(timeout=30)  # paho comes back by itself
            assert not code.is_failure


def test_a_taken_port_is_an_error_that_names_it(engine: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=f"127.0.0.1:{port}: address already in use") as caught:
            edgefl_broker.start(engine, port=port)
    assert caught.value.hint and "port 0" in caught.value.hint


def test_a_free_port_that_was_taken_meanwhile_is_replaced(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        free_port = running._free_port
        offers: Iterator[int] = iter([port, port])
        monkeypatch.setattr(running, "_free_port", lambda host: next(offers, None) or free_port(host))
        with edgefl_broker.start(engine) as broker:
            assert broker.port != port
            assert broker.alive()


def test_a_broker_that_cannot_start_says_its_last_words(mosquitto: str) -> None:
    with pytest.raises(BrokerError, match=r"(?s)mosquitto ended with exit code 3.*Invalid max_packet_size value"):
        edgefl_broker.start("mosquitto", max_packet_bytes=-1)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "broker.example", ""])
def test_an_address_that_others_can_reach_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="loopback only") as caught:
        edgefl_broker.start(host=host)
    assert caught.value.hint and "broker/mosquitto/" in caught.value.hint


def test_iotcore_is_the_second_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    without_mosquitto(monkeypatch, tmp_path)
    with edgefl_broker.start() as broker:
        assert broker.engine == "iotcore"
    with pytest.raises(ConfigError, match="iotcore has no users"):
        edgefl_broker.start(users={"ada": "secret"})


def test_mosquitto_is_the_first_choice(mosquitto: str) -> None:
    with edgefl_broker.start() as broker:
        assert broker.engine == "mosquitto"


def test_without_any_broker_the_hint_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    without_mosquitto(monkeypatch, tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for engine in ("auto", "mosquitto", "iotcore"):
        with pytest.raises(BrokerError) as caught:
            edgefl_broker.start(engine)
        assert caught.value.hint and "apt install mosquitto" in caught.value.hint and "iotcore" in caught.value.hint


def test_an_unknown_engine_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown broker engine 'emqx'"):
        edgefl_broker.start("emqx")


def test_mosquitto_tells_its_packet_limit_and_keeps_it(mosquitto: str, client) -> None:
    with edgefl_broker.start("mosquitto", max_packet_bytes=10_000) as broker:
        speaker = client(None)
        _, properties = speaker.connect(broker.url)
        assert properties.MaximumPacketSize == 10_000
        assert not speaker.publish("t", bytes(9_000)).is_failure
        speaker.paho.publish("t", bytes(11_000), qos=1)
        assert speaker.disconnected.get(timeout=30).value == 149  # packet too large


def test_iotcore_hangs_up_on_a_packet_above_its_limit(client) -> None:
    with edgefl_broker.start("iotcore", max_packet_bytes=10_000) as broker:
        speaker = client(broker.url)
        assert not speaker.publish("t", bytes(9_000)).is_failure
        speaker.paho.publish("t", bytes(11_000), qos=1)
        speaker.disconnected.get(timeout=30)  # without a reason


def test_users_need_their_password(mosquitto: str, client) -> None:
    with edgefl_broker.start("mosquitto", users={"ada": "right ö"}) as broker:
        passwords = (broker._directory / "passwords").read_text()
        assert passwords.startswith("ada:$") and "right" not in passwords
        for user, password, refused in [("ada", "right ö", False), ("ada", "wrong", True), (None, None, True)]:
            speaker = client(None)
            if user is not None:
                speaker.paho.username_pw_set(user, password)
            code, _ = speaker.connect(broker.url)
            assert code.is_failure == refused, (user, password, code)


@pytest.mark.parametrize("users", [{"a:b": "x"}, {"": "x"}, {"a": ""}, {"a": "x\nb"}, {"a": "x:y"}])
def test_a_user_that_would_break_the_password_file_is_refused(mosquitto: str, users: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="broker user"):
        edgefl_broker.start("mosquitto", users=users)


def listens(url: str) -> bool:
    """Whether anything accepts connections there."""
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), timeout=5).close()  # type: ignore[arg-type]
    except OSError:
        return False
    return True


def until(condition: Callable[[], bool], what: str, deadline_s: float = 30) -> None:
    """Poll until `condition` holds."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"


def without_mosquitto(monkeypatch: pytest.MonkeyPatch, empty: os.PathLike[str]) -> None:
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr(engines, "PROGRAM_DIRECTORIES", (str(empty),))
