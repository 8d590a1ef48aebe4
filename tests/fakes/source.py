"""A Git branch in memory, with faults on demand. The contract suite keeps it honest for plain files."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter, defaultdict, deque
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from reconciler.core.errors import RegopsError, StalledError, TransientError
from reconciler.core.model import (
    PLATFORM,
    BlobIds,
    CommitInfo,
    Content,
    FileError,
    PolicyName,
    Tree,
    git_blob_id,
    is_project_name,
    project_policy,
)
from reconciler.core.ports import BranchCommit, PastVersion, PolicyChange

_START = 1_700_000_000
_State = tuple[PolicyChange, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class _Commit:
    info: CommitInfo
    files: Mapping[str, bytes]
    parents: tuple[str, ...]


class InMemorySource:
    """Implements `Source`; `commit` and `force_push` are what others do at the remote.

    ``fail("fetch", error, …)`` lets the next calls of a method raise; ``hold("fetch")`` lets all calls wait until the
    returned event is set; ``calls`` counts calls by method.
    """

    def __init__(self, path: str = "policies", branch: str = "main") -> None:
        self.calls: Counter[str] = Counter()
        self.head: str | None = None
        self._path = path
        self._branch = branch
        self._commits: dict[str, _Commit] = {}
        self._fetched: set[str] = set()
        self._blobs: dict[str, bytes] = {}
        self._faults: dict[str, deque[RegopsError]] = defaultdict(deque)
        self._gates: dict[str, asyncio.Event] = {}

    # What others do.

    def commit(
        self,
        files: Mapping[str, bytes | None],
        *,
        message: str = "change",
        author: str = "Alice Example <alice@example.org>",
        on: str | None = None,
        merge: str | None = None,
    ) -> str:
        """Commit changes on the head, or on commit ``on``; ``None`` deletes a file or a folder."""
        base = self.head if on is None else on
        now = dict(self._commits[base].files) if base else {}
        for path, content in files.items():
            for gone in [known for known in now if known == path or known.startswith(f"{path}/")]:
                del now[gone]
            if content is not None:
                now[path] = content
                self._blobs[git_blob_id(content)] = content
        parents = tuple(commit for commit in (base, merge) if commit)
        at = f"{datetime.fromtimestamp(_START + len(self._commits), UTC):%Y-%m-%dT%H:%M:%S}Z"
        commit = hashlib.sha1(repr((len(self._commits), sorted(now), parents, message)).encode()).hexdigest()
        self._commits[commit] = _Commit(CommitInfo(commit, author, at, message.partition("\n")[0]), now, parents)
        self.head = commit
        return commit

    def force_push(self, commit: str) -> None:
        """Let the branch point to any commit."""
        self.head = commit

    def delete_branch(self) -> None:
        """Take the branch away; the commits stay."""
        self.head = None

    def fail(self, method: str, *errors: RegopsError) -> None:
        """Let the next ``len(errors)`` calls of a method raise these."""
        self._faults[method].extend(errors)

    def hold(self, method: str) -> asyncio.Event:
        """Let calls of a method wait until the event is set."""
        return self._gates.setdefault(method, asyncio.Event())

    # The port.

    async def fetch(self, *, told: bool = True) -> str:  # noqa: ARG002 nothing is cheaper than this
        await self._called("fetch")
        if self.head is None:
            reason = "BranchNotFound" if self._commits else "NoCommit"
            raise StalledError(f"no branch {self._branch!r}", reason=reason)
        self._fetched |= self._reachable(self.head)
        return self.head

    async def tree(self, commit: str, since: str | None = None) -> Tree:
        await self._called("tree")
        found = self._tree_of(commit)
        if since is None or since not in self._fetched:
            return found
        former = self._tree_of(since)
        before, after = ({**each.policies, **each.invalid} for each in (former, found))
        states = {name: (before.get(name), after.get(name)) for name in before.keys() | after.keys()}
        changed = frozenset(PolicyName(name) for name, (old, new) in states.items() if old != new and _possible(name))
        return replace(found, since=since, changed=changed if former.found and found.found else None)

    def _tree_of(self, commit: str) -> Tree:
        files = self._get(commit).files
        prefix = f"{self._path}/"
        below = {path.removeprefix(prefix): content for path, content in files.items() if path.startswith(prefix)}
        return _tree(commit, {path: git_blob_id(content) for path, content in below.items()})

    async def read(self, blobs: BlobIds) -> Content:
        await self._called("read")
        return Content(self._blob(blobs.rego), None if blobs.data is None else self._blob(blobs.data))

    async def sizes(self, blobs: BlobIds) -> tuple[int, int]:
        await self._called("sizes")
        return len(self._blob(blobs.rego)), 0 if blobs.data is None else len(self._blob(blobs.data))

    async def contents(self, wanted: Sequence[BlobIds | None], *, limit: int, budget: int) -> Sequence[Content | None]:
        await self._called("contents")
        found: list[Content | None] = []
        size = 0
        for blobs in wanted:
            content = None
            if blobs is not None:
                content = Content(self._blob(blobs.rego), None if blobs.data is None else self._blob(blobs.data))
            found.append(None if content is None or content.size > limit else content)
            size += 0 if content is None or content.size > limit else content.size
            if size >= budget:
                break
        return found

    async def info(self, commit: str) -> CommitInfo:
        await self._called("info")
        return self._get(commit).info

    async def parent(self, commit: str) -> str | None:
        await self._called("parent")
        return next(iter(self._get(commit).parents), None)

    async def last_change(self, commit: str, policy: PolicyName) -> CommitInfo:
        await self._called("last_change")
        for step, before in self._line(commit):
            if self._files_of(step, policy) != (self._files_of(before, policy) if before else {}):
                return self._get(step).info
        raise StalledError(f"{policy} never was", reason="PolicyNotFound")

    async def last_changes(self, commit: str, policies: Sequence[PolicyName]) -> Mapping[PolicyName, CommitInfo]:
        await self._called("last_changes")
        return {policy: await self.last_change(commit, policy) for policy in policies}

    async def height(self, commit: str) -> int:
        await self._called("height")
        self._get(commit)
        return len(self._reachable(commit))

    async def contains(self, commit: str, ancestor: str) -> bool:
        await self._called("contains")
        return commit in self._fetched and ancestor in self._reachable(commit)

    async def find(self, text: str) -> str | None:
        await self._called("find")
        known = {each for head in self._fetched for each in self._reachable(head) if each.startswith(text)}
        return known.pop() if len(known) == 1 and re.fullmatch(r"[0-9a-f]{4,40}", text) else None

    async def past_versions(self, commit: str, policy: PolicyName) -> Sequence[PastVersion]:
        await self._called("past_versions")
        line = list(self._line(commit))
        seen = {_blobs_at(self._files_of(commit, policy))}
        versions = []
        for step, before in line:
            now = _blobs_at(self._files_of(step, policy))
            if now != (_blobs_at(self._files_of(before, policy)) if before else None):
                if now is not None and now not in seen:
                    versions.append(PastVersion(step, now))
                seen.add(now)
        return versions[:100]

    async def line(self, commit: str, known: Container[str] = ()) -> Sequence[str]:
        await self._called("line")
        found: list[str] = []
        for step, _ in self._line(commit):
            if step in known:
                break
            found.append(step)
        return found[::-1]

    async def branch_commits(
        self, commits: Sequence[str], policy: PolicyName | None = None
    ) -> Mapping[str, BranchCommit]:
        await self._called("branch_commits")
        found: dict[str, BranchCommit] = {}
        for commit in (each for each in commits if each in self._fetched):
            parents = self._commits[commit].parents
            now = self._states(commit)
            before: dict[PolicyName, _State] = self._states(parents[0]) if parents else {}
            absent: _State = (PolicyChange(None), frozenset())
            changes: dict[PolicyName, PolicyChange] = {
                name: now.get(name, absent)[0]
                for name in (now.keys() | before.keys() if policy is None else {policy})
                if now.get(name, absent) != before.get(name, absent)
            }
            found[commit] = BranchCommit(self._commits[commit].info, changes)
        return found

    # Inside.

    def _states(self, commit: str) -> dict[PolicyName, _State]:
        """Every policy of a commit, with the published files that make it what it is."""
        files, prefix = self._commits[commit].files, f"{self._path}/"
        below = {
            path.removeprefix(prefix): git_blob_id(each) for path, each in files.items() if path.startswith(prefix)
        }
        tree = _tree(commit, below)
        faults = {
            name: PolicyChange(None, "; ".join(each.message for each in errors))
            for name, errors in tree.invalid.items()
            if name == PLATFORM or is_project_name(name.removeprefix("projects/"))
        }
        changes: dict[str, PolicyChange] = {
            **{name: PolicyChange(each) for name, each in tree.policies.items()},
            **faults,
        }
        return {
            PolicyName(name): (change, frozenset(self._files_of(commit, PolicyName(name)).items()))
            for name, change in changes.items()
        }

    async def _called(self, method: str) -> None:
        self.calls[method] += 1
        if method in self._gates:
            async with asyncio.timeout(30):
                await self._gates[method].wait()
        if self._faults[method]:
            raise self._faults[method].popleft()

    def _get(self, commit: str) -> _Commit:
        if commit not in self._fetched:
            raise TransientError(f"no commit {commit!r}", reason="CommitNotFound")
        return self._commits[commit]

    def _blob(self, blob: str) -> bytes:
        try:
            return self._blobs[blob]
        except KeyError as error:
            raise TransientError(f"no blob {blob!r}", reason="FetchFailed") from error

    def _reachable(self, commit: str) -> set[str]:
        found: set[str] = set()
        waiting = [commit]
        while waiting:
            step = waiting.pop()
            if step not in found:
                found.add(step)
                waiting.extend(self._commits[step].parents)
        return found

    def _line(self, commit: str) -> Iterator[tuple[str, str | None]]:
        """Each commit of the first-parent history with its first parent."""
        step: str | None = self._get(commit).info.commit
        while step is not None:
            before = next(iter(self._commits[step].parents), None)
            yield step, before
            step = before

    def _files_of(self, commit: str, policy: PolicyName) -> Mapping[str, str]:
        files = self._commits[commit].files
        paths = {name: f"{self._path}/{policy}/{name}" for name in ("rego.rego", "data.json")}
        return {name: git_blob_id(files[path]) for name, path in paths.items() if path in files}


def _possible(name: str) -> bool:
    return name == PLATFORM or is_project_name(name.removeprefix("projects/"))


def _blobs_at(files: Mapping[str, str]) -> BlobIds | None:
    return BlobIds(files["rego.rego"], files.get("data.json")) if "rego.rego" in files else None


def _tree(commit: str, below: Mapping[str, str]) -> Tree:
    """The layout rules for plain files; links, submodules and odd bytes are the real one's business."""
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    ignored: set[str] = set()
    for path, blob in below.items():
        match path.split("/"):
            case ["platform", name, *rest]:
                folders["platform"]["/".join([name, *rest])] = blob
            case ["projects", project, name, *rest]:
                folders[f"projects/{project}"]["/".join([name, *rest])] = blob
            case [*_]:
                ignored |= {path.partition("/")[0] + ("/" if "/" in path else "")} if _said(path) else set()
    policies: dict[PolicyName, BlobIds] = {}
    invalid: dict[str, tuple[FileError, ...]] = {}
    for folder, files in folders.items():
        project = folder.removeprefix("projects/")
        ignored |= {f"{folder}/{_first(name)}" for name in files if _said(name)} - {f"{folder}/rego.rego"}
        blobs = _blobs_at(files)
        if folder != "platform" and not is_project_name(project):
            invalid[folder] = (FileError(folder, "impossible name"),)
        elif blobs is None:
            invalid[folder] = (FileError(f"{folder}/rego.rego", "missing"),)
        else:
            policies[PLATFORM if folder == "platform" else project_policy(project)] = blobs
    return Tree(commit, policies, invalid, tuple(sorted(ignored)), found=bool(below))


def _first(path: str) -> str:
    name, slash, _ = path.partition("/")
    return name + slash


def _said(path: str) -> bool:
    """Whether a path is reported when it is no part of a policy."""
    name, slash, _ = path.partition("/")
    unpublished = name in {"rego.rego", "data.json"} or name.startswith("README") or name.endswith("_test.rego")
    return not name.startswith(".") and (bool(slash) or not unpublished)
