"""From one commit's tree to the desired state: the layout rules of docs/architecture.md, names and modes only.

A ``projects`` folder is made from its predecessor: a commit that changes one of 10,000 projects costs one comparison of
bytes and the reading of one folder.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import pygit2
from immutables import Map

from reconciler.adapters.git.difference import Pair, RawTrees
from reconciler.adapters.git.objects import FOLDER, CommitNotFoundError, Entry, commit_of, entries_in, entries_of
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
_PROJECTS: Final = b"projects"


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


@dataclass(frozen=True, slots=True)
class _State:
    """A part of a `Tree`. Never changed once made: what comes of it shares what stayed as it was."""

    policies: Map[PolicyName, BlobIds] = field(default_factory=Map)
    invalid: Map[str, tuple[FileError, ...]] = field(default_factory=Map)
    ignored: Map[str, tuple[str, ...]] = field(default_factory=Map)

    def changed(self, gone: Iterable[str], found: Iterable[_Found]) -> _State:
        """The state with nothing at the paths that are ``gone``, and then with what was ``found``."""
        policies, invalid, ignored = self.policies.mutate(), self.invalid.mutate(), self.ignored.mutate()
        for path in gone:
            policies.pop(PolicyName(path), None)
            invalid.pop(path, None)
            ignored.pop(path, None)
        for each in found:
            if each.blobs is not None:
                policies[PolicyName(each.path)] = each.blobs
            if each.errors:
                invalid[each.path] = each.errors
            if each.ignored:
                ignored[each.path] = each.ignored
        return _State(policies.finish(), invalid.finish(), ignored.finish())


@dataclass(frozen=True, slots=True)
class _Found:
    """What lies at one path below ``git.path``."""

    path: str
    blobs: BlobIds | None = None
    errors: tuple[FileError, ...] = ()
    ignored: tuple[str, ...] = ()


class _Projects:
    """The state of one ``projects`` folder. Never changed once made: several commits may share it."""

    def __init__(self, oid: bytes | None = None, raw: bytes = b"", state: _State | None = None) -> None:
        self._oid = oid
        self._raw = raw
        self.state = state or _State()

    def successor(self, repository: pygit2.Repository, trees: RawTrees, oid: bytes) -> _Projects:
        """The state of another ``projects`` folder, from this one and the difference."""
        raw = trees.read(repository, oid)
        if self._oid is None:
            pairs: dict[bytes, Pair] = {entry[1]: (None, entry) for entry in entries_in(raw)}
        else:
            trees.keep(self._oid, self._raw)
            pairs = trees.differing(repository, self._oid, oid)
        gone = (f"projects/{_shown(name)}" for name, (before, _) in pairs.items() if before)
        there = (_project(repository, after) for _, after in pairs.values() if after)
        return _Projects(oid, raw, self.state.changed(gone, there))


class Layout:
    """Reads desired states below ``path`` of the repository, and remembers the last few."""

    def __init__(self, path: str, trees: RawTrees | None = None) -> None:
        """``trees``: the raw trees that others read too."""
        self._trees = trees or RawTrees()
        self.path = tuple(part for part in path.split("/") if part not in {"", "."})
        self._latest = _Projects()
        self._projects: OrderedDict[bytes, _Projects] = OrderedDict()

    def read(self, repository: pygit2.Repository, commit: str, since: str | None = None) -> Tree:
        """The desired state of one commit, with ``invalid`` and ``ignored`` in a stable order; see `Source.tree`."""
        folder = self.folder_of(repository, commit_of(repository, commit))
        if folder is None:
            return Tree(commit, Map(), self._in_its_place(repository, commit_of(repository, commit)), found=False)
        top = entries_of(repository, folder)
        projects = next((each for each in top if each[1] == _PROJECTS and each[0] == FOLDER), None)
        state = _State() if projects is None else self._read_projects(repository, projects[2]).state
        state = state.changed((), (_top(repository, entry) for entry in top if entry is not projects))
        return Tree(
            commit,
            state.policies,
            dict(sorted(state.invalid.items())),
            tuple(sorted(path for paths in state.ignored.values() for path in paths)),
            since=since,
            changed=None if since is None else self._changed(repository, since, folder),
        )

    def _changed(self, repository: pygit2.Repository, since: str, folder: pygit2.Oid) -> frozenset[PolicyName] | None:
        """The policies that may differ from those of the commit ``since``; ``None`` where that is not easily said."""
        try:
            former = self.folder_of(repository, commit_of(repository, since))
        except CommitNotFoundError:
            return None
        if former is None:
            return None
        before, after = ({entry[1]: entry for entry in entries_of(repository, tree)} for tree in (former, folder))
        platform = PLATFORM.encode()
        changed = frozenset({PLATFORM}) if before.get(platform) != after.get(platform) else frozenset()
        old, new = before.get(_PROJECTS), after.get(_PROJECTS)
        if old == new:
            return changed
        if old is None or new is None or old[0] != FOLDER or new[0] != FOLDER:
            return None
        names = map(_shown, self._trees.differing(repository, old[2], new[2]))
        return changed | {project_policy(name) for name in names if is_project_name(name)}

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

    def _read_projects(self, repository: pygit2.Repository, oid: bytes) -> _Projects:
        projects = self._projects.get(oid)
        if projects is None:
            projects = self._latest.successor(repository, self._trees, oid)
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


def _top(repository: pygit2.Repository, entry: Entry) -> _Found:
    """What an entry beside ``projects`` says, or one in the place of that folder."""
    mode, raw, oid = entry
    name = _shown(raw)
    if name not in {"platform", "projects"}:
        return _Found(name, ignored=() if _unpublished(mode, name) else (_path(mode, name),))
    if mode != FOLDER:
        return _refused(name, f"is {_kind(mode)} where a folder must be; put the folder in its place")
    return _policy(PLATFORM, read_folder(entries_of(repository, pygit2.Oid(raw=oid))))


def _project(repository: pygit2.Repository, entry: Entry) -> _Found:
    mode, raw, oid = entry
    name = _shown(raw)
    path = f"projects/{name}"
    if mode == FOLDER and not name.startswith("."):
        if is_project_name(name):
            return _policy(project_policy(name), read_folder(entries_of(repository, pygit2.Oid(raw=oid))))
        return _refused(path, f"{name!r} is an impossible name: {PROJECT_RULE}; rename the folder")
    if is_project_name(name):
        return _refused(path, f"is {_kind(mode)} where a policy's folder must be; put the folder in its place")
    return _Found(path, ignored=() if _unpublished(mode, name) else (_path(mode, path),))


def _policy(policy: PolicyName, folder: Folder) -> _Found:
    errors = tuple(FileError(f"{policy}/{file}", message) for file, message in folder.faults)
    return _Found(policy, folder.blobs, errors, tuple(f"{policy}/{name}" for name in folder.ignored))


def _refused(path: str, message: str) -> _Found:
    return _Found(path, errors=(FileError(path, message),))


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
