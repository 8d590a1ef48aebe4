"""Versions of policies and what became of them. Pure: from the order of commits and what a pass did to states.

A version is *applied* once a pass made it live, *held* while it could not go live, *superseded* when a newer one was
there before a pass came by. What no pass told (its replica died before it was recorded, or the record was lost) is
inferred: a version that a later commit replaced had been merged to be enforced, so it counts as applied, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from reconciler.core.ledger import Entry
from reconciler.core.model import BlobIds, CommitInfo, Content, PolicyName
from reconciler.core.ports import BranchCommit, PolicyChange


class State(StrEnum):
    """What became of a version. Of several words that passes told, the one of highest rank counts."""

    SUPERSEDED = "superseded"
    HELD = "held"
    APPLIED = "applied"

    @property
    def rank(self) -> int:
        """Applied counts most: a version that was live in one datacentre has been live."""
        return list(State).index(self)


COMMIT_GONE: Final = "CommitGone"
"""Reason of a version whose commit this mirror never had: another recorder numbered it before the branch was rewritten.
Who has the commit fills it in."""
INVALID_LAYOUT: Final = "InvalidLayout"
"""Reason of a version that is no policy: a link, or a missing file."""
APPLIED_TIMES: Final = 10


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one policy, without its text.

    ``position`` is its commit's place in the ledger. ``applied_at`` is when passes made it live (RFC 3339 UTC, oldest
    first, the last `APPLIED_TIMES`): more than once where it came back by a rewritten branch or a hold, never where no
    pass told. ``blobs`` is ``None`` for a deletion and for what is no policy. ``inferred``: no pass told what became
    of it.
    """

    policy: PolicyName
    version: int
    position: int
    info: CommitInfo
    blobs: BlobIds | None
    state: State
    deleted: bool = False
    reason: str = ""
    message: str = ""
    inferred: bool = False
    applied_at: tuple[str, ...] = ()

    @property
    def etag(self) -> str | None:
        """The ETag of the policy in this version; ``None`` where there is none."""
        return None if self.blobs is None else self.blobs.etag

    @property
    def pull_request(self) -> int | None:
        """Number of the pull request that brought it, when the commit's subject tells it."""
        return pull_request_of(self.info.subject)


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version with its exact bytes; ``content`` is ``None`` where it has none, or where they are too large for the
    record: Git has them under ``version.blobs``."""

    version: Version
    content: Content | None


@dataclass(frozen=True, slots=True)
class Retention:
    """How many versions of each policy are kept, newest first. At least one of each: the highest number never goes."""

    applied: int = 5
    others: int = 5


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a version is not live: a PascalCase reason, and the first error for a person."""

    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one pass did, as far as the record needs it.

    ``previous`` is the commit that was applied before, so that of everything in between nothing was live. ``changed``
    has the new ETag of each policy that the pass changed in etcd (``None``: deleted), healed ones left out; ``held``
    every policy whose newest version is not live. ``at`` is RFC 3339 UTC.
    """

    commit: str
    previous: str | None
    at: str
    changed: Mapping[PolicyName, str | None] = field(default_factory=dict)
    held: Mapping[PolicyName, Hold] = field(default_factory=dict)


def judge(
    entries: Iterable[tuple[int, Entry]],
    commits: Mapping[str, BranchCommit],
    seen: Seen,
    *,
    line: Container[str],
    told: Container[str],
) -> list[Version]:
    """The versions of these entries (position and entry, in order) and their states.

    ``line`` has those of the entries' commits that lie on the pass's own first-parent history; of the others it tells
    nothing: another recorder has seen the branch otherwise. ``told`` has those of which the pass tells everything: they
    came after its ``previous``.
    """
    drafts = [draft for position, entry in entries for draft in _drafts(position, entry, commits.get(entry.commit))]
    own = [draft for draft in drafts if draft.reason != COMMIT_GONE and draft.info.commit in line]
    newest = {draft.policy: draft.version for draft in own}
    live = _live(own, newest, seen)
    fates = {
        (draft.policy, draft.version): _fate(
            draft, newest=newest[draft.policy], live=live.get(draft.policy), seen=seen, told=draft.info.commit in told
        )
        for draft in own
    }
    return [fates.get((draft.policy, draft.version)) or _untold(draft) for draft in drafts]


def _drafts(position: int, entry: Entry, commit: BranchCommit | None) -> list[Version]:
    """The versions of one entry, superseded until their fate is known."""
    if commit is None:
        info = CommitInfo(entry.commit, "", "", "")
        gone = PolicyChange(None, COMMIT_GONE)
        changes: Mapping[PolicyName, PolicyChange] = dict.fromkeys(entry.numbers, gone)
    else:
        info, changes = commit.info, commit.changes
    return [
        Version(
            policy=policy,
            version=number,
            position=position,
            info=info,
            blobs=change.blobs,
            state=State.SUPERSEDED,
            deleted=change.deleted,
            reason="" if not change.fault else COMMIT_GONE if commit is None else INVALID_LAYOUT,
            message=change.fault if commit is not None else "",
            inferred=commit is None,
        )
        for policy, number in entry.numbers.items()
        if (change := changes.get(policy)) is not None
    ]


def _live(drafts: Sequence[Version], newest: Mapping[PolicyName, int], seen: Seen) -> Mapping[PolicyName, int]:
    """The number of the version among the drafts that the pass left live, where it is one of them."""
    live: dict[PolicyName, int] = {}
    for draft in drafts:
        if draft.reason:
            continue
        if draft.policy in seen.changed:
            found = draft.etag == seen.changed[draft.policy]
        else:
            found = draft.policy not in seen.held and draft.version == newest[draft.policy]
        if found:
            live[draft.policy] = draft.version
    return live


def _fate(draft: Version, *, newest: int, live: int | None, seen: Seen, told: bool) -> Version:
    if draft.version == live:
        return replace(draft, state=State.APPLIED, applied_at=(seen.at,))
    if draft.version == newest and (hold := seen.held.get(draft.policy)) is not None:
        return replace(draft, state=State.HELD, reason=hold.reason, message=hold.message)
    if not draft.reason and (told or draft.version == newest):
        return draft
    return _untold(draft)


def _untold(draft: Version) -> Version:
    if draft.reason == COMMIT_GONE:
        return draft
    if draft.reason:
        return replace(draft, state=State.HELD)
    return replace(draft, state=State.APPLIED, inferred=True)


def surplus(versions: Iterable[Version], keep: Retention) -> list[Version]:
    """Those of one policy's versions that are kept no longer. The one that a pass made live last stays, also when it
    is an old one that a rewritten branch has brought back."""
    known = list(versions)
    live = _latest(each for each in known if each.applied_at)
    left = {True: keep.applied, False: keep.others}
    gone: list[Version] = []
    for each in sorted(known, key=lambda version: (version is live, version.version), reverse=True):
        applied = each.state is State.APPLIED
        left[applied] -= 1
        if left[applied] < 0:
            gone.append(each)
    return gone


def survivors(versions: Sequence[Version], keep: Retention) -> list[Version]:
    """Those that newer ones among them do not push out at once."""
    known: dict[PolicyName, list[Version]] = {}
    for version in versions:
        known.setdefault(version.policy, []).append(version)
    gone = {(each.policy, each.version) for some in known.values() for each in surplus(some, keep)}
    return [version for version in versions if (version.policy, version.version) not in gone]


def better(old: Version, new: Version) -> bool:
    """Whether the state of ``new`` replaces that of ``old``, the same version as another pass has seen it: what a pass
    told and ranks higher, or is told where it was inferred. So the order in which recorders write does not matter."""
    if old.reason == COMMIT_GONE:
        return new.reason != COMMIT_GONE
    if new.inferred or new.reason == COMMIT_GONE:
        return False
    return old.inferred or new.state.rank > old.state.rank


def made_live(versions: Iterable[Version], etag: str | None, until: int) -> Version | None:
    """Of one policy's versions the one that became live with a commit at position ``until``: the newest one that has
    this ETag (``None``: is a deletion)."""
    fitting = [v for v in versions if v.position <= until and (v.etag == etag if etag is not None else v.deleted)]
    return max(fitting, key=lambda version: version.version, default=None)


def known_as_live(version: Version, versions: Iterable[Version]) -> bool:
    """Whether it is told already that this one of a policy's versions became live last."""
    return version is _latest(versions) and not version.inferred


def live_at(versions: Iterable[Version], at: str) -> Version | None:
    """Which of one policy's versions was made live last at or before ``at`` (RFC 3339)."""
    return _latest(versions, datetime.fromisoformat(at))


def _latest(versions: Iterable[Version], until: datetime | None = None) -> Version | None:
    lived = [
        (datetime.fromisoformat(time), version.version, version)
        for version in versions
        if version.state is State.APPLIED
        for time in version.applied_at or (version.info.committed_at,)
    ]
    found = [each for each in lived if until is None or each[0] <= until]
    return max(found, key=lambda each: each[:2])[2] if found else None


_PULL_REQUEST: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"Merge pull request #(\d{1,9})\b",  # GitHub, Gitea
        r"Merged in \S+ \(pull request #(\d{1,9})\)",  # Bitbucket Cloud
        r"Pull request #(\d{1,9}):",  # Bitbucket Data Center
        r"Merged PR (\d{1,9}):",  # Azure DevOps
        r".*\((?:pull request )?#(\d{1,9})\)$",  # squashed on GitHub, Gitea
        r".*\(!(\d{1,9})\)$",  # squashed on GitLab, where the template says so
    )
)


def pull_request_of(subject: str) -> int | None:
    """The number of the pull request that a commit's subject names, as the hosts write it."""
    for pattern in _PULL_REQUEST:
        if found := pattern.match(subject):
            return int(found[1])
    return None
