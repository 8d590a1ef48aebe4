"""New commits in the mirror: nothing is checked out, no reference moves."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import pygit2

from reconciler.adapters.git.history import time_of
from reconciler.adapters.git.objects import FOLDER, Entry, commit_of
from reconciler.adapters.git.packing import NewObjects
from reconciler.core.errors import StalledError
from reconciler.core.model import DATA_FILE, REGO_FILE, Content, PolicyName
from reconciler.core.ports import Edit, Identity

COMMITTER: Final = Identity("regops", "regops@localhost")

_UNSAFE = re.compile(r"[\x00-\x1f\x7f<>]+")
_FILE: Final = b"100644"
_PLAIN: Final = frozenset({_FILE, b"100755"})
_SUBJECT: Final = 200


@dataclass(frozen=True, slots=True)
class _Tip:
    """A commit: its id and its tree's, and its committer's time in seconds since the epoch."""

    commit: str
    tree: bytes
    time: int


@dataclass(frozen=True, slots=True)
class Pen:
    """Writes commits below ``path``, the folder of the policies."""

    path: str
    committer: Identity = COMMITTER

    def commits(self, repository: pygit2.Repository, parent: str, edits: Sequence[Edit]) -> tuple[str, ...]:
        """The ids of new commits, one on the other; see `Branch.commit`."""
        base = commit_of(repository, parent)
        tip, objects, made = _Tip(parent, base.tree_id.raw, time_of(base)), NewObjects(repository), []
        for edit in edits:
            tip = self._commit(objects, tip, edit)
            made.append(tip.commit)
        objects.write()
        return tuple(made)

    def _commit(self, objects: NewObjects, parent: _Tip, edit: Edit) -> _Tip:
        folder = [*self.path.split("/"), *edit.policy.split("/")]
        content = edit.content

        def change(tree: list[Entry]) -> list[Entry]:
            return [] if content is None else _replaced(objects, tree, content)

        tree = _changed(objects, parent.tree, folder, change) or objects.tree(())
        if tree == parent.tree:
            raise StalledError(f"{_named(edit.policy)} would not change", reason="NothingToCommit")
        now = max(int(time.time()), parent.time)
        lines = (
            b"tree %b" % tree.hex().encode(),
            b"parent %b" % parent.commit.encode(),
            b"author %b" % _signed(edit.author, now),
            b"committer %b" % _signed(self.committer, now),
            b"",
            _message(edit).encode("utf-8", "replace"),
        )
        return _Tip(objects.commit(b"\n".join(lines)).hex(), tree, now)


def _changed(
    objects: NewObjects, tree: bytes | None, path: list[str], change: Callable[[list[Entry]], list[Entry]]
) -> bytes | None:
    """``tree`` with the folder at ``path`` changed; ``None`` when nothing is left in it."""
    entries = {entry[1]: entry for entry in (objects.entries(tree) if tree else ())}
    if not path:
        entries = {entry[1]: entry for entry in change(list(entries.values()))}
    else:
        name, rest = path[0].encode(), path[1:]
        mode, _, oid = entries.get(name, (b"", name, b""))
        below = _changed(objects, oid if mode == FOLDER else None, rest, change)
        if below is not None:
            entries[name] = (FOLDER, name, below)
        else:
            entries.pop(name, None)
    return objects.tree(entries.values()) if entries else None


def _replaced(objects: NewObjects, tree: list[Entry], content: Content) -> list[Entry]:
    """The policy's folder with these two files; what else lies there stays."""
    entries = {entry[1]: entry for entry in tree}
    for file, text in ((REGO_FILE, content.rego), (DATA_FILE, content.data)):
        name = file.encode()
        mode = entries.pop(name)[0] if name in entries else _FILE
        if text is not None:
            entries[name] = (mode if mode in _PLAIN else _FILE, name, objects.blob(text))
    return list(entries.values())


def _message(edit: Edit) -> str:
    """Subject, blank line, trailers (git-interpret-trailers(1)); nothing in a value can begin another line."""
    trailers = "".join(f"{name}: {_line(value)}\n" for name, value in edit.trailers)
    return f"{_line(edit.subject)[:_SUBJECT]}\n\n{trailers}" if trailers else f"{_line(edit.subject)[:_SUBJECT]}\n"


def signature_of(identity: Identity, at: int) -> pygit2.Signature:
    """The identity as it stands in a commit; ``at`` in seconds since the epoch."""
    name = _UNSAFE.sub(" ", identity.name).strip(" .,:;\"'\\") or "unknown"
    email = _UNSAFE.sub("", identity.email).replace(" ", "") or "unknown@localhost"
    return pygit2.Signature(name, email, at, 0, "utf-8")


def _signed(identity: Identity, at: int) -> bytes:
    """The identity's line in a commit, without its first word."""
    signature = signature_of(identity, at)
    return b"%b <%b> %d +0000" % (signature.raw_name, signature.raw_email, at)


def _line(text: str) -> str:
    return " ".join(_UNSAFE.sub(" ", text).split())


def _named(policy: PolicyName) -> str:
    return f"the policy {policy}"
