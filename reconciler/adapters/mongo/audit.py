"""`MongoAudit`: the `AuditStore` port on the collection ``audit_events``, whose documents end by a TTL index."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import BulkWriteError

from reconciler.adapters.mongo.client import DUPLICATE, Document, MongoDatabase, translated
from reconciler.core.record_ports import OF_RECONCILER, AuditDocument, AuditQuery

_DAY: Final = 86400
_CURSOR: Final = re.compile(r"([0-9TZ:.+-]{20,40})~([0-9a-f]{40})")
_VERIFIED: Final = "verified"
_FILTERS: Final = ("resource", "actor", "action", "result", "request_id")


class MongoAudit:
    """See `AuditStore`. Events are kept for ``days``."""

    def __init__(self, database: MongoDatabase, *, days: int = 90) -> None:
        self._database = database
        self._events = database.collection("audit_events")
        self._state = database.collection("audit_state")
        self._seconds = days * _DAY
        self._prepared = False

    async def append(self, events: Sequence[AuditDocument]) -> None:
        """See `AuditStore.append`."""
        await self._prepare()
        if not events:
            return
        with translated():
            try:
                await self._events.insert_many([_document(event) for event in events], ordered=False)
            except BulkWriteError as error:
                failures = error.details["writeErrors"]
                if any(each["code"] != DUPLICATE for each in failures) or error.details.get("writeConcernErrors"):
                    raise

    async def events(
        self, query: AuditQuery, *, before: str | None = None, limit: int = 100
    ) -> tuple[Sequence[AuditDocument], str | None]:
        """See `AuditStore.events`."""
        wanted: Document = {name: value for name in _FILTERS if (value := getattr(query, name)) is not None}
        times = {"$gte": query.since, "$lt": query.until}
        span = {operator: datetime.fromisoformat(time) for operator, time in times.items() if time is not None}
        if span:
            wanted["at"] = span
        if before is not None:
            wanted["$or"] = _older(before)
        with translated():
            order = [("at", DESCENDING), ("_id", DESCENDING)]
            found = await self._events.find(wanted).sort(order).limit(limit + 1).to_list()
        shown = found[:limit]
        after = f"{shown[-1]['at'].astimezone(UTC).isoformat()}~{shown[-1]['_id']}" if len(found) > limit else None
        return [{name: value for name, value in each.items() if name not in {"_id", "at"}} for each in shown], after

    async def known(self, commits: Collection[str]) -> set[str]:
        """See `AuditStore.known`."""
        await self._prepare()
        query = {"commit": {"$in": list(commits)}, "action": {"$nin": list(OF_RECONCILER)}}
        with translated():
            return {document["commit"] async for document in self._events.find(query, {"commit": True})}

    async def verified(self) -> str | None:
        """See `AuditStore.verified`. Where all events are gone, so is what was known of them."""
        await self._prepare()
        with translated():
            found = await self._state.find_one({"_id": _VERIFIED})
            if found is None or await self._events.find_one({}, {"_id": True}) is None:
                return None
        commit: str | None = found["commit"]
        return commit

    async def verify(self, commit: str | None) -> None:
        """See `AuditStore.verify`."""
        with translated():
            await self._state.update_one({"_id": _VERIFIED}, {"$set": {"commit": commit}}, upsert=True)

    async def _prepare(self) -> None:
        if self._prepared:
            return
        await self._database.ensure(
            self._events,
            [
                IndexModel([("at", DESCENDING), ("_id", DESCENDING)]),
                IndexModel([("resource", ASCENDING), ("at", DESCENDING)]),
                IndexModel([("actor", ASCENDING), ("at", DESCENDING)]),
                IndexModel([("commit", ASCENDING)], sparse=True),
            ],
        )
        await self._database.expire(self._events, "at", self._seconds)
        self._prepared = True


def _document(event: AuditDocument) -> dict[str, Any]:
    """The event with its time as a date (MongoDB has milliseconds, as the log does) and an id that is its content's."""
    text = json.dumps(event, sort_keys=True, ensure_ascii=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:40]
    return {"_id": name, "at": datetime.fromisoformat(str(event["ts"])), **event}


def _older(before: str) -> list[dict[str, Any]]:
    found = _CURSOR.fullmatch(before)
    if found is None:
        raise ValueError(f"{before[:80]!r} is no place in the audit trail")
    at = datetime.fromisoformat(found[1])
    return [{"at": {"$lt": at}}, {"at": at, "_id": {"$lt": found[2]}}]
