"""A TCP relay between a client and a broker that can hold answers back, cut the line, and refuse large packets."""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """Listens on `port`; every connection is carried to `target`. `hold` keeps the broker's answers back.

    `most_bytes`: it hangs up on a client that sends a larger packet, and says nothing; `refused` has their sizes.
    """

    def __init__(self, target: int, *, most_bytes: int | None = None) -> None:
        self._target = target
        self._most_bytes = most_bytes
        self.refused: list[int] = []
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
            read = source.recv if held or self._most_bytes is None else self._packets(source).read
            while data := read(65536):
                if held and not self._flows.is_set():
                    self._flows.wait()
                    break  # what was held back is lost with the line
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            _shut(end)
            end.close()

    def _packets(self, source: socket.socket) -> _Packets:
        assert self._most_bytes is not None
        return _Packets(source, self._most_bytes, self.refused)


class _Packets:
    """What a client sends, packet by packet, up to one that is too large."""

    def __init__(self, source: socket.socket, most_bytes: int, refused: list[int]) -> None:
        self._stream = source.makefile("rb")
        self._most_bytes = most_bytes
        self._refused = refused

    def read(self, _: int) -> bytes:
        """The next packet; nothing at the end."""
        head = self._stream.read(2)
        while head and head[-1] & 0x80:  # the length has another byte
            head += self._stream.read(1)
        length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(head[1:]))
        if len(head) + length > self._most_bytes:
            self._refused.append(len(head) + length)
            return b""
        return head + self._stream.read(length)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
