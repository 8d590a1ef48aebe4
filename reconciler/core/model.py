"""The nouns: policies, trees, live state, plans. Frozen values with no behaviour that needs a clock or IO.

Bare *revision* means a Git commit; the etcd counter is always *mod_revision* (of a key) or *store revision* (of a
read).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NewType

PolicyName = NewType("PolicyName", str)
"""``platform`` or ``projects/<project>``; made only by `policy_name` and `project_policy`."""

PLATFORM: Final = PolicyName("platform")
REGO_FILE: Final = "rego.rego"
DATA_FILE: Final = "data.json"

_PROJECT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
PROJECT_RULE: Final = (
    "a project's name is a DNS label: 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit, "
    "and not 'platform'"
)


def is_project_name(project: str) -> bool:
    """Whether ``project`` is a DNS label (RFC 1123, lower case) other than ``platform``."""
    return project != "platform" and _PROJECT.fullmatch(project) is not None


def project_policy(project: str) -> PolicyName:
    """The policy of one project. Raises `ValueError` with the naming rule when the name is impossible."""
    if not is_project_name(project):
        raise ValueError(f"{project!r} is no project name: {PROJECT_RULE}")
    return PolicyName(f"projects/{project}")


def policy_name(text: str) -> PolicyName:
    """``platform`` or ``projects/<project>`` as a policy name; `ValueError` for anything else."""
    if text == PLATFORM:
        return PLATFORM
    prefix, _, project = text.partition("/")
    if prefix != "projects":
        raise ValueError(f"{text!r} is no policy name: write 'platform' or 'projects/<project>'")
    return project_policy(project)


def project_of(policy: PolicyName) -> str | None:
    """The project's name, or ``None`` for the platform."""
    return None if policy == PLATFORM else policy.removeprefix("projects/")


def package_of(policy: PolicyName) -> tuple[str, ...]:
    """The Rego package path that a policy owns: ``("platform",)`` or ``("projects", "<project>")``."""
    return tuple(policy.split("/"))


def git_blob_id(content: bytes) -> str:
    """Git's object id of a blob with these bytes (SHA-1, hex), computable without Git."""
    return hashlib.sha1(b"blob %d\x00%b" % (len(content), content), usedforsecurity=False).hexdigest()


@lru_cache(65536)
def _etag(rego: str, data: str | None) -> str:
    """Remembered: each pass asks for all policies' again."""
    digest = hashlib.sha256(f"{rego}\n{data or '-'}\n".encode()).hexdigest()
    return f'"{digest[:40]}"'


@dataclass(frozen=True, slots=True)
class BlobIds:
    """The two Git blob ids of a policy: what it is, in 40 hex digits each."""

    rego: str
    data: str | None = None

    @property
    def etag(self) -> str:
        """The strong entity-tag (RFC 9110 section 8.8.3), quotes included: the same wherever the bytes are the same."""
        return _etag(self.rego, self.data)


@dataclass(frozen=True, slots=True)
class Content:
    """The exact bytes of a policy's files, as Git has them; ``data`` is ``None`` when there is no ``data.json``."""

    rego: bytes
    data: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return len(self.rego) + len(self.data or b"")

    def blob_ids(self) -> BlobIds:
        """The ids that Git would give these bytes."""
        return BlobIds(git_blob_id(self.rego), None if self.data is None else git_blob_id(self.data))


@dataclass(frozen=True, slots=True)
class FileError:
    """One thing that is wrong with one file, for a person: ``message`` says what and how to put it right.

    ``file`` is the path below ``git.path`` (``projects/a/rego.rego``); ``line`` and ``column`` count from 1.
    """

    file: str
    message: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        return f"{place}: {self.message}"


@dataclass(frozen=True, slots=True)
class Tree:
    """What one commit says: the desired state. Nothing in it was read but names, modes and ids.

    ``policies``: every well-formed policy. ``invalid``: policies (or raw paths, for impossible names) that the layout
    alone refuses (a link, a missing ``rego.rego`` …). ``ignored``: paths that are not published, below ``git.path``.
    ``found``: whether ``git.path`` exists and is a folder in that commit. ``changed``: every policy in which it differs
    from the tree of the commit ``since``, and perhaps others; ``None`` where that is not known.
    """

    commit: str
    policies: Mapping[PolicyName, BlobIds]
    invalid: Mapping[str, tuple[FileError, ...]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    found: bool = True
    since: str | None = None
    changed: frozenset[PolicyName] | None = None


@dataclass(frozen=True, slots=True)
class CommitInfo:
    """What regops needs to know about a commit: author in ``Name <email>`` form, times in RFC 3339 UTC."""

    commit: str
    author: str
    committed_at: str
    subject: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What validation found: valid when ``errors`` is empty.

    ``rego_version`` is the one under which the policy compiles: 0 or 1. ``lasting``: it would be the same another time;
    that something took too long would perhaps not.
    """

    errors: tuple[FileError, ...] = ()
    warnings: tuple[FileError, ...] = ()
    rego_version: int = 1
    lasting: bool = True

    @property
    def valid(self) -> bool:
        """Whether the policy may go live."""
        return not self.errors
