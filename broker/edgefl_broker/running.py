"""A broker's life: start it, know that it serves, stop it."""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
import os
import queue
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from edgefl.errors import BrokerError, ConfigError
from edgefl_broker.engines import Engine, Wanted, choose, configure

ENVIRONMENT = {
    "LC_ALL": "C",  # "Address already in use", in every language
    # glibc: keep freed blocks of a packet's size. To fetch them anew for each packet cost 2 ms of a dream step.
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(32 * 2**20),
}
MAX_PACKET_BYTES = 2 * 2**20  # a frame of protocol.MAX_FRAME_BYTES, its topic and properties
_ATTEMPTS = 8  # at a free port that another program may take before our broker does
_LOG_LINES = 8  # of a broker that failed, in the error
_POLL_S = 0.005


class _PortTaken(Exception):
    pass


class RunningBroker:
    """A broker that serves. Made by `start`; a context manager that stops it.

    engine      "mosquitto" or "iotcore"
    version     of the engine
    url         of the MQTT 5 listener, "mqtt://127.0.0.1:PORT"
    url_311     of the MQTT 3.1.1 listener; mosquitto's is the same
    process     the broker's own process; `process.pid` is what to kill in a test of failures
    """

    def __init__(self, engine: Engine, wanted: Wanted, process: _Child, directory: Path) -> None:
        self.engine = engine.name
        self.host = wanted.host
        self.port = wanted.port
        self.url = _url(wanted.host, wanted.port)
        self.url_311 = _url(wanted.host, engine.port_311)
        self.version = "unknown"
        self._child = process
        self.process = process.popen
        self._directory = directory
        self._log = directory / "log"
        self._owner_pid = os.getpid()
        self._stopped = threading.Event()
        atexit.register(self.stop)

    def alive(self) -> bool:
        """Whether the broker's process still runs."""
        return self.process.poll() is None

    def log(self) -> str:
        """What the broker wrote so far; nothing after `stop`."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def stop(self) -> None:
        """End the broker and remove its files. Stopping twice is fine; a forked copy of us stops nothing."""
        if self._stopped.is_set() or os.getpid() != self._owner_pid:
            return
        self._stopped.set()
        atexit.unregister(self.stop)
        self._child.end()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> RunningBroker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "alive" if self.alive() else "ended"
        return f"<{self.engine} {self.version} at {self.url}, {state}>"


def start(
    engine: str = "auto",
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    max_packet_bytes: int = MAX_PACKET_BYTES,
    users: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
) -> RunningBroker:
    """Start a broker on this machine's loopback and return when it serves.

    engine      "mosquitto", "iotcore", or "auto": mosquitto where it is installed, else iotcore
    port        0 takes a free one
    users       name -> password; without users anyone on this machine may connect (mosquitto only)

    The broker ends with `stop`, and when our process ends in any way, killed included. One exception: outside
    Linux a mosquitto outlives a parent that was killed. What it holds is in memory only.

    Raises ConfigError for an address that other machines can reach, BrokerError when no broker could be started.
    """
    host = _loopback(host)
    name = choose(engine, users)
    deadline = time.monotonic() + timeout_s
    for _ in range(_ATTEMPTS if port == 0 else 1):
        wanted = Wanted(host, port or _free_port(host), _free_port(host), max_packet_bytes, users)
        directory = Path(tempfile.mkdtemp(prefix="edgefl-broker-"))
        try:
            setup = configure(name, wanted, directory)
            running = RunningBroker(setup, wanted, _Child(setup, directory), directory)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        try:
            running.version = _until_ready(running, setup, deadline)
            return running
        except _PortTaken:
            running.stop()
        except BaseException:
            running.stop()
            raise
    where = f"{host}:{port}" if port else f"any of {_ATTEMPTS} free ports of {host}"
    raise BrokerError(f"{name} could not listen on {where}: address already in use", hint="use port 0 for a free one")


def _until_ready(broker: RunningBroker, engine: Engine, deadline: float) -> str:
    """Wait until the broker serves; its version. Needs its log's word and an answer to MQTT's CONNECT."""
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            broker.process.wait(_POLL_S)
        ended = not broker.alive()  # asked before its log is read, so that the log is whole
        log = broker.log()
        if "Address already in use" in log:
            raise _PortTaken
        if ended:
            raise BrokerError(
                f"{engine.name} ended with exit code {broker.process.returncode} as it started{_last_lines(log)}"
            )
        if all(text in log for text in engine.log_ready) and _answers(broker.host, broker.port):
            found = re.search(rf"{engine.name} version (\S+)", log)
            return found[1] if found else "unknown"
    raise BrokerError(f"{engine.name} did not serve on {broker.url} in time{_last_lines(broker.log())}")


def _answers(host: str, port: int) -> bool:
    """Whether an MQTT 5 broker answers a CONNECT there, be it with a refusal."""
    client = f"edgefl-probe-{secrets.token_hex(4)}".encode()
    # protocol name, version 5, clean start, keep-alive 10 s, no properties, client id
    body = b"\0\4MQTT\5\2\0\12\0" + len(client).to_bytes(2, "big") + client
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(b"\x10" + bytes([len(body)]) + body)
            answer = connection.recv(1)
            connection.sendall(b"\xe0\0")  # DISCONNECT
            return answer == b"\x20"  # CONNACK
    except OSError:
        return False


class _Child:
    """The broker's process, and the thread that forked it.

    Linux sends the parent-death signal when the *thread* that forked ends, so that thread waits for `end`: a broker
    that was started from a short-lived thread would die with it.
    """

    def __init__(self, engine: Engine, directory: Path) -> None:
        self._ended = threading.Event()
        forked: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()

        def fork_and_stay() -> None:
            try:
                with open(directory / "log", "wb") as log:
                    process = subprocess.Popen(
                        engine.command,
                        stdin=subprocess.PIPE if engine.holds_stdin else subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        cwd=directory,  # nothing in the user's directory can shadow a module
                        env=os.environ | ENVIRONMENT,
                        start_new_session=os.name == "posix",  # Ctrl-C is for us; the broker ends after us
                    )
            except OSError as error:
                forked.put(error)
                return
            forked.put(process)
            self._ended.wait()

        threading.Thread(target=fork_and_stay, name=f"edgefl-{engine.name}", daemon=True).start()
        process = forked.get()
        if isinstance(process, OSError):
            raise BrokerError(f"cannot run {engine.command[0]}: {process}") from process
        self.popen = process

    def end(self) -> None:
        """Ask the process to end, then insist."""
        self.popen.terminate()
        try:
            self.popen.wait(3)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        if self.popen.stdin is not None:
            self.popen.stdin.close()
        self._ended.set()


def _loopback(host: str) -> str:
    """The address to listen on. Raises ConfigError unless only this machine can reach it."""
    if host == "localhost":
        return "127.0.0.1"
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return host
    raise ConfigError(
        f"the embedded broker listens on loopback only, not on {host!r}: it has neither TLS nor an access list",
        hint="for other machines run mosquitto with the configuration in broker/mosquitto/",
    )


def _free_port(host: str) -> int:
    """A port nobody listens on at the moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _url(host: str, port: int) -> str:
    return f"mqtt://[{host}]:{port}" if ":" in host else f"mqtt://{host}:{port}"


def _last_lines(log: str) -> str:
    lines = log.strip().splitlines()[-_LOG_LINES:]
    return "; its last lines: " + " | ".join(line.strip() for line in lines) if lines else "; it wrote nothing"
