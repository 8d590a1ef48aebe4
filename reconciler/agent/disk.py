"""The last bundle on disk, so that a restarted agent serves it at once with etcd away.

One file: a line of JSON about the bundle, then its bytes as OPA gets them (``tail -n +2 bundle | tar tz`` lists it).
Everything here blocks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.agent.bundle import Bundle
from reconciler.agent.scope import Scope
from reconciler.agent.state import Order

_FILE: Final = "bundle"
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Saved:
    """A bundle and the newest commit whose content it is; ``order`` ``None`` while nothing was ever applied;
    ``live_digest``: see `Receipt`."""

    bundle: Bundle
    commit: str
    order: Order | None
    scope: Scope
    live_digest: str | None = None


class Disk:
    """The folder that holds the copy; made when it is missing. One agent per folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, saved: Saved) -> None:
        """Replace the copy; when this returns, it survives a power failure. `OSError` when the disk refuses."""
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f"{_FILE}.tmp"
        with temporary.open("wb") as file:
            file.write(_header(saved))
            file.write(saved.bundle.body)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._folder / _FILE)
        _sync_folder(self._folder)

    def load(self) -> Saved | None:
        """The copy, or ``None`` when there is none. `ValueError` when it is damaged, `OSError` when unreadable."""
        with contextlib.suppress(FileNotFoundError), (self._folder / _FILE).open("rb") as file:
            return _saved(file.readline(), file.read())
        return None


def _header(saved: Saved) -> bytes:
    document = {
        "format": _FORMAT,
        "etag": saved.bundle.etag,
        "revision": saved.bundle.revision,
        "commit": saved.commit,
        "order": saved.order,
        "scope": str(saved.scope),
        "live_digest": saved.live_digest,
        "sha256": hashlib.sha256(saved.bundle.body).hexdigest(),
    }
    return json.dumps(document).encode() + b"\n"


def _saved(header: bytes, body: bytes) -> Saved:
    try:
        document = json.loads(header)
        if document["format"] != _FORMAT or document["sha256"] != hashlib.sha256(body).hexdigest():
            raise ValueError("the bundle on disk is damaged or of another format")
        order = document["order"]
        return Saved(
            bundle=Bundle(document["etag"], document["revision"], body),
            commit=document["commit"],
            order=None if order is None else (int(order[0]), int(order[1])),
            scope=Scope.parse(document["scope"]),
            live_digest=document.get("live_digest"),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"the bundle on disk has no proper header: {error!r}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
