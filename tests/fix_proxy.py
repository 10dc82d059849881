"""A proxy that knows where PostgreSQL's messages begin and end, and breaks connections there.

Faults happen at a message, not at a time, so a test that found one finds it again. Messages are
counted from 1 in each direction of each connection (documentation, "Frontend/Backend Protocol").
A request for encryption is answered with No, since what is encrypted cannot be counted.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Literal

import pytest

from tests.fix_servers import Database

Direction = Literal["frontend", "backend"]

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
QUERY, PARSE, COPY_DATA = "Q", "P", "d"


@dataclass(frozen=True)
class Point:
    """A message of a connection: the client's are `frontend`, the server's `backend`."""

    direction: Direction
    number: int

    def __str__(self) -> str:
        return f"{self.direction} {self.number}"


@dataclass(frozen=True)
class Message:
    """A message that came by.

    Args:
        kind: The protocol's letter for it; none for the first of a connection.
        statement: The text of a Query or Parse.
    """

    point: Point
    kind: str
    statement: str = ""


@dataclass(frozen=True)
class Fault:
    """What happens when a message comes by."""

    action: Literal["cut before", "cut after", "stall", "delay"]
    point: Point
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.action} {self.point}"


class Proxy:
    """Stands between clients and one server; a context manager.

    Args:
        fault: What is to happen, once: to the first connection that gets as far.
        sessions: The messages of each connection since `reset`, in the order they came by.
        struck: Set as soon as the fault has happened.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._connections: list[_Connection] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self.host, self.port = self._listener.getsockname()
        self.reset()

    def __enter__(self) -> Proxy:  # noqa: PYI034  # typing has no Self in Python 3.10
        self._accepting.start()
        return self

    def __exit__(self, *failure: object) -> None:
        # A thread blocked in accept() holds the socket open until it is woken up.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        self.heal()
        for connection in self._connections:
            connection.close()

    def route(self, database: Database) -> Database:
        """Return the same database, reached through the proxy."""
        return database.by(self.host, self.port)

    def reset(self, fault: Fault | None = None) -> None:
        """Forget what came by, let everything flow, and wait for the next fault."""
        with self._lock:
            self.fault = fault
            self.sessions: list[list[Message]] = []
            self.struck = threading.Event()
        self._flowing.set()

    def heal(self) -> None:
        """End a stall."""
        self._flowing.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()
                continue
            connection = _Connection(self, client, server)
            self._connections.append(connection)
            connection.start()

    # --- what connections ask -------------------------------------------------------------

    def _opened(self) -> list[Message]:
        with self._lock:
            messages: list[Message] = []
            self.sessions.append(messages)
            return messages

    def _pass(self, messages: list[Message], direction: Direction, frame: bytes) -> Fault | None:
        """Record a message, and return the fault that is to happen to it."""
        with self._lock:
            number = 1 + sum(message.point.direction == direction for message in messages)
            point = Point(direction, number)
            messages.append(Message(point, *_described(frame, direction)))
            fault = self.fault
            if fault is None or fault.point != point or self.struck.is_set():
                return None
            self.struck.set()
        if fault.action == "stall":
            self._flowing.clear()
        return fault

    def _wait_while_stalled(self) -> None:
        self._flowing.wait()


@dataclass
class _Connection:
    """One client's connection, pumped by a thread in each direction."""

    proxy: Proxy
    client: socket.socket
    server: socket.socket
    messages: list[Message] = field(default_factory=list)
    pumps: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for end in (self.client, self.server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.messages = self.proxy._opened()
        self.pumps = [
            threading.Thread(target=pump, daemon=True)
            for pump in (self._pump_frontend, self._pump_backend)
        ]
        for pump in self.pumps:
            pump.start()

    def close(self) -> None:
        self._cut()
        for pump in self.pumps:
            pump.join()

    def _pump_frontend(self) -> None:
        with suppress(OSError):
            self._greet()
            self._pump("frontend", self.client, self.server)
        self._cut()

    def _pump_backend(self) -> None:
        with closing(self.client), closing(self.server):
            with suppress(OSError):
                self._pump("backend", self.server, self.client)
            self._cut()
            # What the server still has to say goes nowhere, but it can say it: closed with
            # unread answers, the socket would reset the connection under its last message.
            with suppress(OSError):
                while self.server.recv(65536):
                    pass

    def _pump(self, direction: Direction, source: socket.socket, target: socket.socket) -> None:
        for frame in _frames(source):
            if not self._forward(direction, frame, target):
                return

    def _greet(self) -> None:
        """Pass the first message on, which alone has no letter; decline encryption before it."""
        while True:
            head = _received(self.client, 8)
            length, code = struct.unpack("!ii", head)
            if code not in {SSL_REQUEST, GSS_REQUEST}:
                break
            self.client.sendall(b"N")
        frame = head + _received(self.client, length - 8)
        if code == CANCEL_REQUEST:
            self.server.sendall(frame)
        elif not self._forward("frontend", frame, self.server):
            raise ConnectionAbortedError

    def _forward(self, direction: Direction, frame: bytes, target: socket.socket) -> bool:
        """Send a message on, unless this is where the connection breaks."""
        fault = self.proxy._pass(self.messages, direction, frame)
        self.proxy._wait_while_stalled()
        if fault is not None and fault.action == "delay":
            time.sleep(fault.seconds)
        if fault is not None and fault.action == "cut before":
            return False
        if fault is not None and fault.action == "cut after" and direction == "frontend":
            # Before the server hears of it: its answer could overtake the cut.
            with suppress(OSError):
                self.client.shutdown(socket.SHUT_RDWR)
        target.sendall(frame)
        return fault is None or fault.action != "cut after"

    def _cut(self) -> None:
        """Break the connection; the server still reads what it was sent before."""
        # shutdown() first: it wakes the thread that is blocked in recv(), as close() does not.
        with suppress(OSError):
            self.client.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self.server.shutdown(socket.SHUT_WR)


def _frames(source: socket.socket) -> Iterator[bytes]:
    """Yield messages that begin with a letter and their length, until the connection ends."""
    while True:
        head = _received(source, 5)
        yield head + _received(source, struct.unpack("!i", head[1:])[0] - 4)


def _received(source: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        part = source.recv(size - len(received))
        if not part:
            raise ConnectionAbortedError
        received += part
    return bytes(received)


def _described(frame: bytes, direction: Direction) -> tuple[str, str]:
    if not frame[0]:
        return "", ""
    kind = chr(frame[0])
    if direction == "backend" or kind not in {QUERY, PARSE}:
        return kind, ""
    # A Parse begins with the name of the prepared statement.
    body = frame[5:] if kind == QUERY else frame[5:].partition(b"\0")[2]
    return kind, body.partition(b"\0")[0].decode(errors="replace")


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    """A proxy before the server of `database`; `proxy.route(database)` goes through it."""
    with Proxy(database.host, database.port) as started:
        yield started
