"""Answers to GET as they are sent, rendered once for each version of a policy."""

from __future__ import annotations

import json
from typing import Final

from api.texts import strict_object
from reconciler.core.limits import Limits
from reconciler.core.model import Content

_LIMITS: Final = Limits()
BYTES: Final = 16 * 2**20
"""What is kept at most; the body rendered first is forgotten first."""


class Rendered:
    """Bodies by ETag: the same bytes of Git, the same answer."""

    def __init__(self, most: int = BYTES) -> None:
        self._most = most
        self._size = 0
        self._bodies: dict[str, bytes] = {}

    def body(self, etag: str, content: Content) -> bytes:
        """The body of the version that has this ETag."""
        found = self._bodies.get(etag)
        if found is None:
            found = self._bodies[etag] = body_of(content)
            self._size += len(found)
            while self._size > self._most:
                self._size -= len(self._bodies.pop(next(iter(self._bodies))))
        return found


def body_of(content: Content) -> bytes:
    """{"rego", "data"}; the data's own text stands in it, so that no number changes its form."""
    if content.data is None:
        return b'{"rego":%b}' % text_of(content.rego)
    return b'{"rego":%b,"data":%b}' % (text_of(content.rego), content.data)


def body_of_any(content: Content) -> bytes:
    """The same of what nobody has judged: data that a PUT would not take as an object is given as ``data_text``."""
    try:
        if content.data is not None:
            strict_object(content.data.decode(), _LIMITS.nesting)
    except (ValueError, RecursionError):
        return b'{"rego":%b,"data_text":%b}' % (text_of(content.rego), text_of(content.data or b""))
    return body_of(content)


def text_of(raw: bytes) -> bytes:
    """A JSON string of it; bytes that are no UTF-8 are replaced."""
    return json.dumps(raw.decode("utf-8", "replace"), ensure_ascii=False).encode()
