"""What became of a push, from what git says: pure. Words are those of git ≥ 2.30 under ``LC_ALL=C`` and the hosts."""

from __future__ import annotations

import re
from typing import Final

from reconciler.adapters.git.failures import clean, failure_of
from reconciler.adapters.git.process import Completed
from reconciler.core.errors import RegopsError, StalledError, TransientError
from reconciler.core.ports import Push, PushResult

_SAID: Final = 2048
"""Characters of the remote's words that are kept."""
_LINE = re.compile(r"^([ +\-*!=])\t[^\t]*\t(.*)$", re.MULTILINE)
_MOVED = re.compile(
    r"stale info|fetch first|non-fast-forward|cannot lock ref|failed to (?:lock|update ref)|reference already exists|"
    r"incorrect old value|needs? force|remote ref updated since checkout",
    re.IGNORECASE,
)
_LOST = re.compile(
    r"remote failure|failed to report status|unexpected disconnect|atomic transaction failed", re.IGNORECASE
)
_NEVER_SENT = re.compile(
    r"Could not resolve host|Couldn't connect|Failed to connect|Connection refused|Connection timed out|"
    r"No route to host|Network is unreachable|unable to connect|SSL certificate problem|"
    r"server certificate verification failed|Could not resolve hostname|port \d+ failed",
    re.IGNORECASE,
)
_NO_WRITE = re.compile(
    r"error: 403|Write access to repository not granted|not allowed to push|read.only|key.*read.only|"
    r"The requested URL returned error: 403|insufficient permission|Permission to \S+ denied",
    re.IGNORECASE,
)
_REMOTE = re.compile(r"^remote: ?(.*)$", re.MULTILINE)


def outcome_of(completed: Completed, remote: str) -> Push:
    """The outcome; raises for what surely was not sent. Whatever is not understood is `UNKNOWN`."""
    line = _LINE.search(completed.output)
    if line is not None:
        return _of_line(line[1], line[2], completed.errors)
    failure = failure_of(completed.errors, remote=remote, status=completed.status)
    if _NO_WRITE.search(completed.errors):
        raise StalledError(
            f"{clean(remote)} does not let these credentials push",
            reason="PushNotPermitted",
            remedy="Give the account or key write access to the branch.",
        )
    if isinstance(failure, StalledError) or failure.reason == "DiskFull":
        raise failure
    if _NEVER_SENT.search(completed.errors):
        raise TransientError(f"{clean(remote)} is out of reach: {_tail(failure)}", reason="PushFailed")
    return Push(PushResult.UNKNOWN, _tail(failure))


def _of_line(flag: str, summary: str, errors: str) -> Push:
    if flag != "!":
        return Push(PushResult.ACCEPTED)
    if _LOST.search(summary):
        return Push(PushResult.UNKNOWN, clean(summary))
    if _MOVED.search(summary):
        return Push(PushResult.MOVED, clean(summary))
    return Push(PushResult.DECLINED, _words(errors) or clean(summary))


def _words(errors: str) -> str:
    """What the remote's hooks said, without the padding that git adds to each line."""
    lines = [clean(text).rstrip() for text in _REMOTE.findall(errors)]
    return "\n".join(line for line in lines if line.strip())[:_SAID]


def _tail(failure: RegopsError) -> str:
    return failure.message.partition(": ")[2] or failure.message
