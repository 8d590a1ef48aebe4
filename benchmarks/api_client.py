"""A load client that is much cheaper than any server: raw sockets with keep-alive, bytes made beforehand, epoll."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Address = tuple[str, int]
Next = Callable[[bytes | None], bytes | None]
"""The next request of a connection, given the whole former answer (``None`` at first); ``None`` ends it."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass
class Load:
    """What came of it: seconds in all, seconds of each request, and how busy this client was (1.0: the bottleneck)."""

    elapsed: float = 0.0
    seconds: list[float] = field(default_factory=list)
    busy: float = 0.0

    @property
    def per_second(self) -> float:
        return len(self.seconds) / self.elapsed


@dataclass
class _Connection:
    socket: socket.socket
    following: Next
    began: float = 0.0
    buffer: bytes = b""
    wanted: int = 0


def request(method: str, path: str, token: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {token}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def status(answer: bytes) -> int:
    return int(answer[9:12])


def header(answer: bytes, name: str) -> str:
    found = re.search(rf"\r\n{name}: *([^\r]*)".encode(), answer.partition(b"\r\n\r\n")[0], re.IGNORECASE)
    if found is None:
        raise SystemExit(f"no {name} in {answer[:300]!r}")
    return found[1].decode()


def once(address: Address, sent: bytes) -> bytes:
    """One request on a connection of its own; its whole answer."""
    answers: list[bytes] = []
    requests = iter([sent])

    def following(former: bytes | None) -> bytes | None:
        answers.extend([former] if former else [])
        return next(requests, None)

    run(address, [following])
    return answers[0]


def repeat(address: Address, sent: bytes, expected: int, connections: int, seconds: float) -> Load:
    """The same request again and again on each connection; every answer must have the expected status."""
    end = time.perf_counter() + seconds

    def following(former: bytes | None) -> bytes | None:
        if former is not None and status(former) != expected:
            raise SystemExit(f"not {expected}: {former[:600]!r}")
        return sent if time.perf_counter() < end else None

    return run(address, [following] * connections)


def run(address: Address, requests: Sequence[Next]) -> Load:
    """One connection for each of ``requests``, until all have ended."""
    load = Load()
    began, cpu = time.perf_counter(), time.process_time()
    with select.epoll() as poll:
        open_ = {}
        for following in requests:
            connection = _Connection(socket.create_connection(address), following)
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if _send(connection, None):
                poll.register(connection.socket, select.EPOLLIN)
                open_[connection.socket.fileno()] = connection
        while open_:
            for descriptor, _ in poll.poll(60):
                connection = open_[descriptor]
                if (answer := _receive(connection)) is not None:
                    load.seconds.append(time.perf_counter() - connection.began)
                    if not _send(connection, answer):
                        poll.unregister(descriptor)
                        open_.pop(descriptor).socket.close()
    load.elapsed = time.perf_counter() - began
    load.busy = (time.process_time() - cpu) / load.elapsed
    return load


def _send(connection: _Connection, former: bytes | None) -> bool:
    sent = connection.following(former)
    if sent is None:
        return False
    connection.began = time.perf_counter()
    connection.socket.sendall(sent)
    return True


def _receive(connection: _Connection) -> bytes | None:
    """The answer, once it is whole."""
    chunk = connection.socket.recv(262144)
    if not chunk:
        raise SystemExit(f"the server has closed the connection after {connection.buffer[:300]!r}")
    connection.buffer = connection.buffer + chunk if connection.buffer else chunk
    if not connection.wanted:
        end = connection.buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = _LENGTH.search(connection.buffer, 0, end)
        connection.wanted = end + 4 + (int(length[1]) if length and status(connection.buffer) != 304 else 0)
    if len(connection.buffer) < connection.wanted:
        return None
    answer, connection.buffer, connection.wanted = connection.buffer, b"", 0
    return answer
