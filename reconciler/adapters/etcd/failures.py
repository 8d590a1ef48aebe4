"""gRPC statuses of etcd in our own words. What matters is whether a write may have happened."""

from __future__ import annotations

import grpc

from reconciler.core.errors import (
    CompactedError,
    DivergedError,
    RegopsError,
    StalledError,
    StoreError,
    UnknownOutcomeError,
)

_NEVER_SENT = ("failed to connect", "connection refused", "no address", "dns resolution failed", "name resolution")


def of_read(error: grpc.aio.AioRpcError, endpoint: str) -> RegopsError:
    """A read (or lease call) that failed: nothing was written."""
    return _refused(error) or StoreError(
        f"etcd at {endpoint} did not answer: {_words(error)}", reason="StoreUnavailable"
    )


def of_write(error: grpc.aio.AioRpcError, endpoint: str) -> RegopsError:
    """A write that failed: surely refused, surely not sent, or unknown."""
    refused = _refused(error)
    if refused is not None:
        return refused
    details = (error.details() or "").lower()
    if error.code() is grpc.StatusCode.UNAVAILABLE and any(words in details for words in _NEVER_SENT):
        return StoreError(f"etcd at {endpoint} cannot be reached: {_words(error)}", reason="StoreUnavailable")
    return UnknownOutcomeError(
        f"etcd at {endpoint} did not say whether it wrote: {_words(error)}", reason="UnknownOutcome"
    )


def may_move_on(error: grpc.aio.AioRpcError) -> bool:
    """Whether another endpoint might answer a read."""
    return error.code() in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }


def _refused(error: grpc.aio.AioRpcError) -> RegopsError | None:  # noqa: C901, PLR0911 one line a status
    """What etcd decided itself; trying the same again brings the same."""
    code, details = error.code(), error.details() or ""
    if "too large" in details or "larger than max" in details:
        return StalledError(
            f"etcd refuses a request of this size ({details})",
            reason="TooLarge",
            remedy="Start every etcd member with --max-request-bytes 2097152.",
        )
    if "too many operations" in details:
        return StalledError(
            "etcd takes fewer operations in one transaction than regops needs",
            reason="TooLarge",
            remedy="Start every etcd member with --max-txn-ops 128 or more.",
        )
    if "space exceeded" in details:
        return StalledError(
            "etcd's database is full", reason="NoSpace", remedy="Compact, defragment and disarm the NOSPACE alarm."
        )
    if "authentication failed" in details:
        return StalledError(
            f"etcd refuses these credentials ({details})",
            reason="AuthenticationFailed",
            remedy="Correct etcd.user and the password in etcd.password_file.",
        )
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in details:
        return CompactedError("the revision is compacted", compact_revision=0)
    if code is grpc.StatusCode.OUT_OF_RANGE and "future revision" in details:
        return DivergedError("etcd does not know a revision that it once had", reason="StoreDiverged")
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return StalledError(f"etcd refuses this user: {details}", reason="PermissionDenied")
    if code is grpc.StatusCode.NOT_FOUND:
        return StoreError(f"etcd: {details}", reason="LeaseNotFound")
    if code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED}:
        return StalledError(f"etcd refuses the request: {details}", reason="StoreRefused")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return StoreError(f"etcd is overloaded: {details}", reason="StoreOverloaded")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return StoreError(f"etcd does not know this user any more: {details}", reason="Unauthenticated")
    return None


def _words(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name.lower()} ({(error.details() or 'no details')[:200]})"
