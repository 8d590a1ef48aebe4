"""What a server start looks at, of every member: flags and sizes that let policies through, and a version that does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import grpc

from reconciler.adapters.etcd import wire
from reconciler.adapters.etcd._pb import etcd_pb2 as pb
from reconciler.adapters.etcd._pb import etcd_pb2_grpc as rpc
from reconciler.adapters.etcd.calls import Calls
from reconciler.core.errors import RegopsError, StalledError
from reconciler.core.ports import Range, StoreHealth, StoreWarning

_OLDEST = (3, 5)
_REQUEST_BYTES = 2_097_152
_OVERHEAD_BYTES = 512 * 1024
"""What etcd's gRPC server takes beyond ``--max-request-bytes`` (server/config/config.go, grpcOverheadBytes)."""
_QUOTA = 2 * 2**30
"""etcd's own default (server/storage/quota.go, DefaultQuotaBytes)."""
_FULL = 0.8
_MANY_REVISIONS = 10_000
_ALARMS = {
    "NOSPACE": "it takes no writes: compact and defragment it, then run `etcdctl alarm disarm`",
    "CORRUPT": "its members disagree about their data: replace the member that differs",
}


async def examine(calls: Calls, endpoints: Sequence[str], seconds: float) -> StoreHealth:
    """Ask every member. Raises `StalledError` for one that is too old, and when none answers the first one's error."""
    asked = await asyncio.gather(*(_ask(calls, endpoint, seconds) for endpoint in endpoints))
    answers = {each: got for each, got in zip(endpoints, asked, strict=True) if not isinstance(got, RegopsError)}
    silent = {each: got for each, got in zip(endpoints, asked, strict=True) if isinstance(got, RegopsError)}
    if not answers:
        raise next(iter(silent.values()))
    for endpoint, status in answers.items():
        if _numbers(status.version) < _OLDEST:
            raise StalledError(
                f"etcd {status.version} at {endpoint} is too old", reason="EtcdTooOld", remedy="Run etcd 3.5 or newer."
            )
    silence = [f"etcd member {endpoint} does not answer: {error}" for endpoint, error in silent.items()]
    limits = await asyncio.gather(*(_request_limit(calls, each, seconds) for each in answers))
    sizes = [_size(endpoint, status) for endpoint, status in answers.items()]
    texts = {"member": silence, "request_limit": limits, "size": sizes, "history": [await _history(calls, seconds)]}
    return StoreHealth(
        version=min((status.version for status in answers.values()), key=_numbers),
        db_size=max(status.dbSize for status in answers.values()),
        quota=min(_quota(status) for status in answers.values()),
        alarms=tuple(sorted({_alarm(said) for status in answers.values() for said in status.errors})),
        warnings=tuple(StoreWarning(kind, text) for kind, found in texts.items() for text in found if text),
    )


async def _ask(calls: Calls, endpoint: str, seconds: float) -> Any:
    """Its status, or the error."""
    try:
        return await calls.ask_at(endpoint, lambda each: rpc.MaintenanceStub(each).Status, pb.StatusRequest(), seconds)
    except RegopsError as error:
        return error


async def _request_limit(calls: Calls, endpoint: str, seconds: float) -> str:
    """A warning when a policy at its size limits would be refused; empty when it fits or cannot be found out.

    Asked by a read of a very long key, as large as the largest message that the wanted limit lets through: a write
    would go through etcd's log, 2 MB each time.
    """
    length = _REQUEST_BYTES + _OVERHEAD_BYTES
    length -= _long_read(length).ByteSize() - length  # what the encoding adds
    request = _long_read(length)
    try:
        await calls.ask_at(endpoint, lambda each: rpc.KVStub(each).Txn, request, seconds)
    except RegopsError as error:
        if error.reason == "TooLarge":
            has = re.search(r"vs\. (\d+)", error.message)
            limit = f" {int(has[1]) - _OVERHEAD_BYTES}" if has else ""
            return (
                f"etcd member {endpoint} refuses policies near the size limit: it has --max-request-bytes{limit}, "
                f"start it with --max-request-bytes {_REQUEST_BYTES}"
            )
    return ""


def _long_read(length: int) -> Any:
    return wire.reading([Range("\0" * length, keys_only=True)])


async def _history(calls: Calls, seconds: float) -> str:
    """A warning for an etcd that keeps every revision it ever had."""
    try:
        now = await calls.ask(_txn, wire.reading([Range("/", keys_only=True)]), seconds)
        if now.header.revision < _MANY_REVISIONS:
            return ""
        await calls.ask(_txn, wire.reading([Range("/", keys_only=True)], 2), seconds)
    except RegopsError:
        return ""  # compacted, as it should be; or a user who may not read that key, or an etcd that is just gone
    return (
        f"etcd was never compacted and keeps all of its {now.header.revision} revisions: start every member with "
        "--auto-compaction-mode periodic --auto-compaction-retention 1h"
    )


def _txn(channel: grpc.aio.Channel) -> Any:
    return rpc.KVStub(channel).Txn


def _quota(status: Any) -> int:
    """Its quota, which etcd tells from 3.6 on. Before, its default is assumed: an etcd that fills up unseen takes no
    writes any more. A database that is larger shows that it was given more, and of that nothing is known (0)."""
    if status.dbSizeQuota:
        return max(0, int(status.dbSizeQuota))  # below 0 there is none
    return _QUOTA if status.dbSize <= _QUOTA else 0


def _size(endpoint: str, status: Any) -> str:
    """A warning for a database that is nearly full."""
    if not (quota := _quota(status)) or status.dbSize < _FULL * quota:
        return ""
    return (
        f"etcd member {endpoint} uses {status.dbSize / 2**20:.0f} MiB of its {quota / 2**20:.0f} MiB: "
        "compact and defragment it, or raise --quota-backend-bytes"
    )


def _alarm(said: str) -> str:
    """A person's words for what `Status` lists, such as ``memberID:10 alarm:NOSPACE``."""
    found = re.search(r"memberID:(\d+)\s+alarm:(\w+)", said)
    if not found:
        return said
    return f"{found[2]} at member {int(found[1]):x}: {_ALARMS.get(found[2], 'see `etcdctl alarm list`')}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
