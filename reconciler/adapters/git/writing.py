"""New commits as objects in the mirror: nothing is checked out, no reference moves."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import pygit2
from pygit2.enums import FileMode

from reconciler.adapters.git.objects import commit_of
from reconciler.core.errors import StalledError
from reconciler.core.model import DATA_FILE, REGO_FILE, Content, PolicyName
from reconciler.core.ports import Edit, Identity

COMMITTER: Final = Identity("regops", "regops@localhost")

_UNSAFE = re.compile(r"[\x00-\x1f\x7f<>]+")
_PLAIN: Final = frozenset({FileMode.BLOB, FileMode.BLOB_EXECUTABLE})
_SUBJECT: Final = 200


@dataclass(frozen=True, slots=True)
class Pen:
    """Writes commits below ``path``, the folder of the policies."""

    path: str
    committer: Identity = COMMITTER

    def commits(self, repository: pygit2.Repository, parent: str, edits: Sequence[Edit]) -> tuple[str, ...]:
        """The ids of new commits, one on the other; see `Branch.commit`."""
        made: list[str] = []
        for edit in edits:
            made.append(self._commit(repository, made[-1] if made else parent, edit))
        return tuple(made)

    def _commit(self, repository: pygit2.Repository, parent: str, edit: Edit) -> str:
        base = commit_of(repository, parent)
        folder = [*self.path.split("/"), *edit.policy.split("/")]
        content = edit.content

        def change(tree: pygit2.Tree | None) -> pygit2.Oid | None:
            return None if content is None else _replaced(repository, tree, content)

        tree = _changed(repository, base.tree, folder, change) or repository.TreeBuilder().write()
        if tree == base.tree.id:
            raise StalledError(f"{_named(edit.policy)} would not change", reason="NothingToCommit")
        now = max(int(time.time()), base.commit_time)
        return str(
            repository.create_commit(
                None, signature_of(edit.author, now), signature_of(self.committer, now), _message(edit), tree, [base.id]
            )
        )


def _changed(
    repository: pygit2.Repository,
    tree: pygit2.Tree | None,
    path: list[str],
    change: Callable[[pygit2.Tree | None], pygit2.Oid | None],
) -> pygit2.Oid | None:
    """``tree`` with the folder at ``path`` changed; ``None`` when nothing is left in it."""
    if not path:
        return change(tree)
    name, *rest = path
    entry = tree[name] if tree is not None and name in tree else None
    below = _changed(repository, entry if isinstance(entry, pygit2.Tree) else None, rest, change)
    builder = repository.TreeBuilder() if tree is None else repository.TreeBuilder(tree)
    if below is not None:
        builder.insert(name, below, FileMode.TREE)
    elif entry is not None:
        builder.remove(name)
    return builder.write() if len(builder) else None


def _replaced(repository: pygit2.Repository, tree: pygit2.Tree | None, content: Content) -> pygit2.Oid:
    """The policy's folder with these two files; what else lies there stays."""
    builder = repository.TreeBuilder() if tree is None else repository.TreeBuilder(tree)
    for name, text in ((REGO_FILE, content.rego), (DATA_FILE, content.data)):
        entry = tree[name] if tree is not None and name in tree else None
        if text is not None:
            mode = entry.filemode if entry is not None and entry.filemode in _PLAIN else FileMode.BLOB
            builder.insert(name, repository.create_blob(text), mode)
        elif entry is not None:
            builder.remove(name)
    return builder.write()


def _message(edit: Edit) -> str:
    """Subject, blank line, trailers (git-interpret-trailers(1)); nothing in a value can begin another line."""
    trailers = "".join(f"{name}: {_line(value)}\n" for name, value in edit.trailers)
    return f"{_line(edit.subject)[:_SUBJECT]}\n\n{trailers}" if trailers else f"{_line(edit.subject)[:_SUBJECT]}\n"


def signature_of(identity: Identity, at: int) -> pygit2.Signature:
    """The identity as it stands in a commit; ``at`` in seconds since the epoch."""
    name = _UNSAFE.sub(" ", identity.name).strip(" .,:;\"'\\") or "unknown"
    email = _UNSAFE.sub("", identity.email).replace(" ", "") or "unknown@localhost"
    return pygit2.Signature(name, email, at, 0, "utf-8")


def _line(text: str) -> str:
    return " ".join(_UNSAFE.sub(" ", text).split())


def _named(policy: PolicyName) -> str:
    return f"the policy {policy}"
