"""What git's messages mean: pure. Messages are those of git ≥ 2.30 under ``LC_ALL=C``, OpenSSH and the large hosts."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import Final

from reconciler.core.errors import RegopsError, StalledError, TransientError

_TAIL_LINES: Final = 6
_TAIL_CHARACTERS: Final = 800
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CREDENTIALS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/@\s]+@", re.IGNORECASE)
_PROGRESS = re.compile(r"^(?:remote: )?[A-Z][a-z]+ing [a-z ]+: +\d+")


class MirrorDamagedError(TransientError):
    """The mirror itself is the trouble: it is thrown away and cloned again."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="FetchFailed", remedy="The mirror is cloned again at the next fetch.")


class MirrorLockedError(TransientError):
    """A lock file was left behind by a git that was killed: sweep and try again."""


class NoSuchRefError(StalledError):
    """The remote answered and has no such branch; why is asked separately."""


@dataclass(frozen=True, slots=True)
class _Meaning:
    pattern: re.Pattern[str]
    reason: str
    says: str
    remedy: str = ""
    error: type[RegopsError] = StalledError


def _meaning(
    pattern: str, reason: str, says: str, remedy: str = "", error: type[RegopsError] = StalledError
) -> _Meaning:
    return _Meaning(re.compile(pattern, re.IGNORECASE), reason, says, remedy, error)


_OURS: Final = (
    _meaning(
        r"No space left on device|Disk quota exceeded|File too large|died of signal 25",
        "DiskFull",
        "There is no room left for the mirror",
        "Make room where git.mirror lies, or choose a larger volume.",
        TransientError,
    ),
    _meaning(r"\.lock'?: File exists", "FetchFailed", "A lock was left in the mirror", error=MirrorLockedError),
    _meaning(
        r"bad object|is corrupt|corrupt loose|object file \S+ is empty|inflate: |reference broken|bad config|"
        r"not a git repository|unresolved delta|packfile \S+ |unable to (?:read|parse) |"
        r"unable to find [0-9a-f]{40}|could not parse|"
        r"missing (?:blob|tree|commit)|invalid sha1 pointer|does not point to a valid object|"
        r"did not send all necessary objects|remote did not send|hash mismatch|has bad |"
        r"Expected git repo version|unknown repository extension",
        "FetchFailed",
        "The mirror is damaged",
        error=MirrorDamagedError,
    ),
)
"""Asked first, and only of lines that git itself wrote: what the remote says about its own disk is not about ours."""

_THEIRS: Final = (
    _meaning(
        r"mismatched algorithms|unsupported object format|unknown object format|object-format",
        "UnsupportedObjectFormat",
        "The remote's objects are not in SHA-1 format",
        "Use a repository with Git's default object format.",
    ),
    _meaning(
        r"couldn't find remote ref|couldn't find remote-ref", "BranchNotFound", "No such ref", error=NoSuchRefError
    ),
    _meaning(
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        "AuthenticationFailed",
        "The remote's host key is not the known one",
        "Put the host's current key (ssh-keyscan prints it; check it) into the file that git.known_hosts names.",
    ),
    _meaning(
        r"dubious ownership",
        "AuthenticationFailed",
        "The repository's folder belongs to another user, so git refuses to serve it",
        "Run regops as the folder's owner, or change the owner.",
    ),
    _meaning(
        r"Repository not found|repository '.*' not found|does not appear to be a git repository|"
        r"project you were looking for could not be found|error: 404|no such repository",
        "RepositoryNotFound",
        "The remote has no such repository (or hides it from these credentials)",
        "Correct git.remote, or let the account read the repository.",
    ),
    _meaning(
        r"Authentication failed|Permission denied(?: \(|, please)|could not read (?:Username|Password)|"
        r"terminal prompts disabled|"
        r"error: 40[13]|Access denied|authorization failed|invalid credentials",
        "AuthenticationFailed",
        "The remote refuses these credentials",
        "Renew the key or token, and let the account read the repository.",
    ),
    _meaning(
        r"transport '[^']*' not allowed",
        "FetchFailed",
        "This protocol is not allowed",
        "Use an https or ssh URL, or a local folder, as git.remote.",
    ),
)
"""Order matters: GitHub answers a wrong key with 'Permission denied', and a hidden repository with 'not found'."""


def failure_of(errors: str, *, remote: str, status: int) -> RegopsError:
    """The error that a failed command's standard error stands for; ``FetchFailed`` with its tail when unknown."""
    own = "\n".join(line for line in errors.splitlines() if not line.startswith("remote:"))
    tail = tail_of(errors) or f"git ended with status {status}"
    place = clean(remote)
    for meanings, text in ((_OURS, own), (_THEIRS, errors)):
        for meaning in meanings:
            if meaning.pattern.search(text):
                return _error(meaning, f"{meaning.says} ({place}): {tail}")
    return TransientError(f"Fetching from {place} failed: {tail}", reason="FetchFailed")


def disk_failure(error: OSError, mirror: str) -> TransientError:
    """The error for a failed operation on the mirror's files."""
    if error.errno in _DISK_FULL:
        remedy = "Make room where git.mirror lies, or choose a larger volume."
        return TransientError(f"There is no room left for the mirror {mirror}", reason="DiskFull", remedy=remedy)
    remedy = "The folder that holds git.mirror must be writable, and the mirror itself no mount point."
    return TransientError(f"The mirror {mirror} cannot be written: {error}", reason="FetchFailed", remedy=remedy)


def clean(text: str) -> str:
    """Without terminal escapes, control characters (but newline and tab) and credentials in URLs."""
    return _CREDENTIALS.sub(r"\1***@", _CONTROL.sub("", _ESCAPE.sub("", text)))


def tail_of(errors: str) -> str:
    """The last lines that say something, cleaned, on one line and short enough for a condition's message."""
    lines = [clean(line).strip() for line in re.split(r"[\r\n]+", errors)]
    said = [line for line in lines if line and not _PROGRESS.match(line)]
    return "; ".join(said[-_TAIL_LINES:])[-_TAIL_CHARACTERS:]


def _error(meaning: _Meaning, message: str) -> RegopsError:
    if meaning.error is MirrorDamagedError:
        return MirrorDamagedError(message)
    return meaning.error(message, reason=meaning.reason, remedy=meaning.remedy)
