"""A proxy that leads whoever asks for Microsoft's hosts to the emulator instead.

For foreign programs that know these hosts by heart. What goes through is encrypted for the
emulator, whose certificate has their names too.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit

__all__ = ["Tunnel"]


class Tunnel:
    """Answers `CONNECT` (RFC 9110, 9.3.6) to any host; a context manager.

    Args:
        target: The URL everybody is led to.
        url: What clients set as their proxy.
    """

    def __init__(self, target: str) -> None:
        address = urlsplit(target)
        assert address.hostname is not None
        assert address.port is not None
        self._target = (address.hostname, address.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Tunnel:  # noqa: PYI034  # typing has no Self in Python 3.10
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *failure: object) -> None:
        # A thread blocked in accept() holds the socket open until it is woken up.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                part = client.recv(4096)
                if not part:
                    return
                request += part
            with socket.create_connection(self._target) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                answers = threading.Thread(target=_pump, args=(server, client), daemon=True)
                answers.start()
                _pump(client, server)
                answers.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes, and that nothing more will."""
    with suppress(OSError):
        while part := source.recv(65536):
            target.sendall(part)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
