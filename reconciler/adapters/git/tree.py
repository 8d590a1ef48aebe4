"""From one commit's tree to the desired state: the layout rules of docs/architecture.md, names and modes only.

`Projects` is made from its predecessor: a commit that changes one of 10,000 projects costs one comparison of two sets
and the reading of one folder.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

import pygit2

from reconciler.adapters.git.objects import FOLDER, Entry, commit_of, entries_of
from reconciler.core.model import (
    DATA_FILE,
    PLATFORM,
    PROJECT_RULE,
    REGO_FILE,
    BlobIds,
    FileError,
    PolicyName,
    Tree,
    is_project_name,
    project_policy,
)

_PLAIN: Final = frozenset({b"100644", b"100755"})
_KINDS: Final = {FOLDER: "a folder", b"120000": "a symbolic link", b"160000": "a submodule"}
_KEPT_TREES: Final = 4


@dataclass(frozen=True, slots=True)
class Folder:
    """What one policy's folder says, whatever its name: ids, or what is wrong (file and message) and what is extra."""

    blobs: BlobIds | None
    faults: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()


def read_folder(entries: list[Entry]) -> Folder:
    """Judge the entries of one policy's folder."""
    ids: dict[str, str] = {}
    faults: dict[str, str] = {}
    ignored: list[str] = []
    for mode, raw, oid in entries:
        name = _shown(raw)
        if name in {REGO_FILE, DATA_FILE}:
            if mode in _PLAIN:
                ids[name] = oid.hex()
            else:
                faults[name] = f"is {_kind(mode)}; commit a plain file in its place"
        elif not _unpublished(mode, name):
            ignored.append(_path(mode, name))
    if REGO_FILE not in ids and REGO_FILE not in faults:
        faults[REGO_FILE] = f"missing: a policy needs a {REGO_FILE}; add it, or delete the whole folder"
    blobs = None if faults else BlobIds(ids[REGO_FILE], ids.get(DATA_FILE))
    return Folder(blobs, tuple(faults.items()), tuple(ignored))


@dataclass(slots=True)
class _State:
    """The part of a `Tree` that is being put together."""

    policies: dict[PolicyName, BlobIds] = field(default_factory=dict)
    invalid: dict[str, tuple[FileError, ...]] = field(default_factory=dict)
    ignored: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def copy(self) -> _State:
        return _State(dict(self.policies), dict(self.invalid), dict(self.ignored))

    def forget(self, path: str) -> None:
        self.policies.pop(PolicyName(path), None)
        self.invalid.pop(path, None)
        self.ignored.pop(path, None)

    def refuse(self, path: str, message: str) -> None:
        self.invalid[path] = (FileError(path, message),)

    def add(self, policy: PolicyName, folder: Folder) -> None:
        if folder.blobs is not None:
            self.policies[policy] = folder.blobs
        else:
            self.invalid[policy] = tuple(FileError(f"{policy}/{file}", message) for file, message in folder.faults)
        if folder.ignored:
            self.ignored[policy] = tuple(f"{policy}/{name}" for name in folder.ignored)


class _Projects:
    """The state of one ``projects`` folder. Never changed once made: several commits may share it."""

    def __init__(self, entries: frozenset[Entry] = frozenset(), state: _State | None = None) -> None:
        self._entries = entries
        self.state = state or _State()

    def successor(self, repository: pygit2.Repository, entries: list[Entry]) -> _Projects:
        """The state of another ``projects`` folder, from this one and the difference."""
        now = frozenset(entries)
        state = self.state.copy()
        for _, name, _ in self._entries - now:
            state.forget(f"projects/{_shown(name)}")
        for entry in now - self._entries:
            _add_project(repository, state, entry)
        return _Projects(now, state)


class Layout:
    """Reads desired states below ``path`` of the repository, and remembers the last few."""

    def __init__(self, path: str) -> None:
        self.path = tuple(part for part in path.split("/") if part not in {"", "."})
        self._latest = _Projects()
        self._projects: OrderedDict[bytes, _Projects] = OrderedDict()

    def read(self, repository: pygit2.Repository, commit: str) -> Tree:
        """The desired state of one commit, with ``invalid`` and ``ignored`` in a stable order."""
        folder = self.folder_of(repository, commit_of(repository, commit))
        if folder is None:
            return Tree(commit, {}, self._in_its_place(repository, commit_of(repository, commit)), found=False)
        state = _State()
        for entry in entries_of(repository, folder):
            state = self._add_top(repository, state, entry)
        invalid = {path: state.invalid[path] for path in sorted(state.invalid)}
        ignored = tuple(sorted(path for paths in state.ignored.values() for path in paths))
        return Tree(commit, state.policies, invalid, ignored)

    def _in_its_place(self, repository: pygit2.Repository, commit: pygit2.Commit) -> dict[str, tuple[FileError, ...]]:
        """What stands in the way of ``path``: a file, link or submodule; nothing where it is just missing."""
        for depth, name in enumerate(self.path):
            above = subfolder(repository, commit.tree_id, self.path[:depth])
            entries = [] if above is None else entries_of(repository, above)
            kinds = [mode for mode, raw, _ in entries if raw == name.encode() and mode != FOLDER]
            if kinds:
                path = "/".join(self.path[: depth + 1])
                message = f"is {_kind(kinds[0])} where the folder of all policies must be; put the folder in its place"
                return {path: (FileError(path, message),)}
        return {}

    def folder_of(self, repository: pygit2.Repository, commit: pygit2.Commit) -> pygit2.Oid | None:
        """The tree of ``path`` in a commit; ``None`` when it is missing or no folder."""
        return subfolder(repository, commit.tree_id, self.path)

    def _add_top(self, repository: pygit2.Repository, state: _State, entry: Entry) -> _State:
        mode, raw, oid = entry
        name = _shown(raw)
        if name not in {"platform", "projects"}:
            if not _unpublished(mode, name):
                state.ignored[name] = (_path(mode, name),)
        elif mode != FOLDER:
            state.refuse(name, f"is {_kind(mode)} where a folder must be; put the folder in its place")
        elif name == "platform":
            state.add(PLATFORM, read_folder(entries_of(repository, pygit2.Oid(raw=oid))))
        else:
            projects = self._read_projects(repository, oid).state
            return _State(
                state.policies | projects.policies, state.invalid | projects.invalid, state.ignored | projects.ignored
            )
        return state

    def _read_projects(self, repository: pygit2.Repository, oid: bytes) -> _Projects:
        projects = self._projects.get(oid)
        if projects is None:
            projects = self._latest.successor(repository, entries_of(repository, pygit2.Oid(raw=oid)))
            self._projects[oid] = projects
            if len(self._projects) > _KEPT_TREES:
                self._projects.popitem(last=False)
        self._latest = projects
        self._projects.move_to_end(oid)
        return projects


def subfolder(repository: pygit2.Repository, tree: pygit2.Oid, path: tuple[str, ...]) -> pygit2.Oid | None:
    """The tree at ``path`` below ``tree``; ``None`` when it is missing or no folder."""
    for name in path:
        folder = repository[tree]
        if not isinstance(folder, pygit2.Tree) or name not in folder:
            return None
        found = folder[name]
        if found.filemode != pygit2.enums.FileMode.TREE:
            return None
        tree = found.id
    return tree


def _add_project(repository: pygit2.Repository, state: _State, entry: Entry) -> None:
    mode, raw, oid = entry
    name = _shown(raw)
    path = f"projects/{name}"
    if mode == FOLDER and not name.startswith("."):
        if is_project_name(name):
            state.add(project_policy(name), read_folder(entries_of(repository, pygit2.Oid(raw=oid))))
        else:
            state.refuse(path, f"{name!r} is an impossible name: {PROJECT_RULE}; rename the folder")
    elif is_project_name(name):
        state.refuse(path, f"is {_kind(mode)} where a policy's folder must be; put the folder in its place")
    elif not _unpublished(mode, name):
        state.ignored[path] = (_path(mode, path),)


def _shown(name: bytes) -> str:
    r"""A name for people and keys; bytes that are not UTF-8 appear as ``\xff``, control characters as ``\x1b``."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _kind(mode: bytes) -> str:
    return _KINDS.get(mode, "a file" if mode in _PLAIN else f"a file of mode {mode.decode()}")


def _path(mode: bytes, path: str) -> str:
    return f"{path}/" if mode == FOLDER else path


def _unpublished(mode: bytes, name: str) -> bool:
    """Whether a name stands for what is meant to stay in Git, and needs no mention."""
    if name.startswith("."):
        return True
    return mode != FOLDER and (name.startswith("README") or name.endswith("_test.rego"))
