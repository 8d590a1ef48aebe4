"""gRPC statuses of etcd in our own words. What matters is whether a write may have happened.

The words compared are those of etcd's api/v3rpc/rpctypes/error.go, the same from 3.5 to 3.7, and of gRPC's core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import grpc

from reconciler.core.errors import (
    CompactedError,
    DivergedError,
    RegopsError,
    StalledError,
    StoreError,
    UnknownOutcomeError,
)

_MOVE_ON = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)
_NEVER_SENT = ("failed to connect", "connection refused", "errors resolving", "no address", "name resolution")
_STALE_TOKEN = ("invalid auth token", "revision of auth store is old", "user name is empty")


def of_read(error: grpc.aio.AioRpcError | TimeoutError, endpoint: str) -> RegopsError:
    """A read (or lease call) that failed: nothing was written."""
    refused = None if isinstance(error, TimeoutError) else _refused(error, endpoint)
    return refused or StoreError(f"etcd at {endpoint} did not answer: {words(error)}", reason="StoreUnavailable")


def of_write(error: grpc.aio.AioRpcError, endpoint: str) -> RegopsError:
    """A write that failed: surely refused, surely not sent, or unknown."""
    refused = _refused(error, endpoint)
    if refused is not None:
        return refused
    details = (error.details() or "").lower()
    if error.code() is grpc.StatusCode.UNAVAILABLE and any(said in details for said in _NEVER_SENT):
        return unreachable({endpoint: details})
    return UnknownOutcomeError(
        f"etcd at {endpoint} did not say whether it wrote: {words(error)}", reason="UnknownOutcome"
    )


def of_cancelled_watch(reason: str) -> StalledError | None:
    """A watch that etcd has ended, ``None`` when it may be tried again."""
    if "permission denied" in reason:
        return _denied(reason)
    if "user name is empty" in reason:
        return _no_user(reason)
    return None


def may_move_on(error: grpc.aio.AioRpcError | TimeoutError) -> bool:
    """Whether another endpoint might do better."""
    return isinstance(error, TimeoutError) or error.code() in _MOVE_ON or _is_learner(error.details() or "")


def is_stale_token(said: str) -> bool:
    """Whether etcd does not take the token any more (or forgot that it gave one)."""
    return any(each in said for each in _STALE_TOKEN)


def words(error: grpc.aio.AioRpcError | TimeoutError) -> str:
    """Status and details in one short line."""
    if isinstance(error, TimeoutError):
        return "deadline_exceeded"
    return f"{error.code().name.lower()} ({(error.details() or 'no details')[:300]})"


def unreachable(reasons: Mapping[str, str]) -> StoreError:
    """No connection came up; ``reasons`` are gRPC's words for each endpoint."""
    told = {endpoint: _why(details) for endpoint, details in reasons.items()}
    texts = [f"{endpoint} ({text})" for endpoint, (text, _) in told.items()]
    remedies = {remedy for _, remedy in told.values()}
    remedy = remedies.pop() if len(remedies) == 1 else ""
    reason = "TlsFailed" if remedy else "StoreUnavailable"
    return StoreError(f"etcd cannot be reached: {', '.join(texts)}", reason=reason, remedy=remedy)


_TLS: tuple[tuple[str, str, str], ...] = (
    (
        "Hostname Verification",
        "its certificate is for another host",
        "Name the member in etcd.endpoints as its certificate does (subject alternative names).",
    ),
    ("has expired", "its certificate has expired", "Renew the member's certificate."),
    (
        "BAD_SIGNATURE",
        "its certificate is not signed by the CA in etcd.ca_file",
        "Set etcd.ca_file to the CA that signed the members' certificates.",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "its certificate is not signed by the CA in etcd.ca_file",
        "Set etcd.ca_file to the CA that signed the members' certificates.",
    ),
    (
        "Unwrap failed",
        "it refuses the client certificate, or its lack",
        "Set etcd.cert_file and etcd.key_file to a valid certificate of a CA that etcd trusts (its --trusted-ca-file).",
    ),
    (
        "create security handshaker",
        "the TLS files cannot be used",
        "See that etcd.ca_file, etcd.cert_file and etcd.key_file are PEM and the key is the certificate's.",
    ),
    ("Handshake read failed", "it seems to speak no TLS", "Write http:// in etcd.endpoints, or start etcd with TLS."),
)


def _why(details: str) -> tuple[str, str]:
    """A person's words for gRPC's, and a remedy where there is one."""
    for said, text, remedy in _TLS:
        if said.lower() in details.lower():
            return text, remedy
    if details.endswith("Socket closed"):
        return "it closes every connection; if it uses TLS, write https:// in etcd.endpoints", ""
    last = details.rpartition("last error: ")[2].rpartition("Failed to connect to remote host: ")[2]
    return last[:200] or "no answer", ""


def _refused(error: grpc.aio.AioRpcError, endpoint: str) -> RegopsError | None:
    """What etcd decided itself, so surely did not do; trying the same again mostly brings the same."""
    details = error.details() or ""
    for said, meaning in _SAID.items():
        if said in details.lower():
            return meaning(details)
    if error.code() in _CODES:
        return _CODES[error.code()](f"{endpoint}: {details}")
    return None


def _is_learner(details: str) -> bool:
    return "not supported for learner" in details


def _denied(details: str) -> StalledError:
    remedy = "Grant its role read and write on the prefixes of etcd.policies_prefix and etcd.own_prefix."
    return StalledError(f"etcd refuses this user: {details}", reason="PermissionDenied", remedy=remedy)


def _no_user(_: str) -> StalledError:
    remedy = "Set etcd.user and etcd.password_file, or the certificate of a user."
    return StalledError("etcd wants to know the user", reason="AuthenticationFailed", remedy=remedy)


def _too_large(details: str) -> StalledError:
    remedy = "Start every etcd member with --max-request-bytes 2097152."
    return StalledError(f"etcd refuses a request of this size ({details})", reason="TooLarge", remedy=remedy)


def _full(_: str) -> StalledError:
    remedy = "Compact and defragment it, or raise --quota-backend-bytes on every member; then `etcdctl alarm disarm`."
    return StalledError("etcd's database is full: it takes no writes", reason="NoSpace", remedy=remedy)


_SAID: Mapping[str, Callable[[str], RegopsError]] = {
    "client: received message larger": lambda said: StalledError(
        f"etcd's answer is larger than regops takes ({said})", reason="AnswerTooLarge"
    ),
    "request is too large": _too_large,
    "larger than max": _too_large,
    "too many operations": lambda _: StalledError(
        "etcd takes fewer operations in one transaction than regops needs",
        reason="TooLarge",
        remedy="Start every etcd member with --max-txn-ops 128 or more.",
    ),
    "space exceeded": _full,
    "has been compacted": lambda _: CompactedError("the revision is compacted", compact_revision=0),
    "is a future revision": lambda _: DivergedError(
        "etcd does not know a revision that it once had", reason="StoreDiverged"
    ),
    "permission denied": _denied,
    "user name is empty": _no_user,
    "authentication failed": lambda _: StalledError(
        "etcd does not take this user and password",
        reason="AuthenticationFailed",
        remedy="Check etcd.user and the file that etcd.password_file names.",
    ),
    "revision of auth store is old": lambda _: StoreError("etcd's users have changed", reason="Unauthenticated"),
    "lease not found": lambda said: StoreError(f"etcd: {said}", reason="LeaseNotFound"),
    "not supported for learner": lambda _: StoreError("this etcd member only learns", reason="StoreUnavailable"),
    "not capable": lambda _: StoreError("etcd is still starting", reason="StoreUnavailable"),
    "corrupt cluster": lambda _: StalledError("etcd's members disagree about their data", reason="StoreCorrupt"),
}
_CODES: Mapping[grpc.StatusCode, Callable[[str], RegopsError]] = {
    grpc.StatusCode.PERMISSION_DENIED: _denied,
    grpc.StatusCode.UNAUTHENTICATED: lambda said: StoreError(
        f"etcd does not know this user any more: {said}", reason="Unauthenticated"
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: lambda said: StoreError(
        f"etcd is overloaded: {said}", reason="StoreOverloaded"
    ),
    grpc.StatusCode.INVALID_ARGUMENT: lambda said: StalledError(
        f"etcd refuses the request: {said}", reason="StoreRefused"
    ),
    grpc.StatusCode.FAILED_PRECONDITION: lambda said: StalledError(
        f"etcd refuses the request: {said}", reason="StoreRefused"
    ),
    grpc.StatusCode.UNIMPLEMENTED: lambda said: StalledError(
        f"what answers is no etcd: {said}", reason="StoreRefused", remedy="Check etcd.endpoints."
    ),
}
