"""A TCP relay between a client and a broker that can hold answers back and cut the line."""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """Listens on `port`; every connection is carried to `target`. `hold` keeps the broker's answers back."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._flows = threading.Event()
        self._flows.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        """What the broker says no longer arrives."""
        self._flows.clear()

    def cut(self) -> None:
        """End every connection; new ones are carried again."""
        for pair in self._pairs:
            for end in pair:
                _shut(end)
        self._pairs.clear()
        self._flows.set()

    def close(self) -> None:
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            broker = socket.create_connection(("127.0.0.1", self._target))
            self._pairs.append((client, broker))
            threading.Thread(target=self._carry, args=(client, broker, False), daemon=True).start()
            threading.Thread(target=self._carry, args=(broker, client, True), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, held: bool) -> None:
        try:
            while data := source.recv(65536):
                if held and not self._flows.is_set():
                    self._flows.wait()
                    break  # what was held back is lost with the line
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            _shut(end)
            end.close()


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
