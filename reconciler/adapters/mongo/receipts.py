"""`MongoReceipts`: the `ReceiptStore` port on the collections ``receipts`` and ``receipt_marks``.

An interval's ``_id`` follows from what it is, so that recorders find each other's. A document without an end has
``to: null``: the TTL index lets only dates expire (MongoDB manual, "TTL Indexes").
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from pymongo import ASCENDING, DESCENDING, IndexModel, UpdateOne
from pymongo.errors import BulkWriteError

from reconciler.adapters.mongo.client import DUPLICATE, Document, MongoDatabase, translated
from reconciler.core.enforcement import FORGOTTEN_AFTER, Interval

_DAY: Final = 86400
_AT_ONCE: Final = 32
_NEWEST: Final = [("from", DESCENDING), ("seen", DESCENDING)]


class MongoReceipts:
    """See `ReceiptStore`. What has ended is kept for ``days``."""

    def __init__(self, database: MongoDatabase, *, days: int = 90) -> None:
        self._database = database
        self._receipts = database.collection("receipts")
        self._marks = database.collection("receipt_marks")
        self._seconds = days * _DAY
        self._prepared = False

    async def write(self, intervals: Sequence[Interval]) -> None:
        """See `ReceiptStore.write`. Where the filter misses a later word, the insertion finds it by its ``_id``."""
        await self._prepare()
        await self._upsert(self._receipts, [_update(interval) for interval in intervals])

    async def open(self, datacentres: Collection[str]) -> Sequence[Interval]:
        """See `ReceiptStore.open`."""
        with translated():
            found = self._receipts.find({"to": None, "datacentre": {"$in": list(datacentres)}})
            return [_interval(document) for document in await found.to_list()]

    async def mark(self, datacentres: Collection[str], at: datetime) -> None:
        """See `ReceiptStore.mark`."""
        updates = [UpdateOne({"_id": name}, {"$max": {"at": at}}, upsert=True) for name in sorted(datacentres)]
        await self._upsert(self._marks, updates)

    async def marks(self) -> Mapping[str, datetime]:
        """See `ReceiptStore.marks`."""
        with translated():
            return {document["_id"]: document["at"] for document in await self._marks.find({}).to_list()}

    async def at(self, at: datetime) -> Sequence[Interval]:
        """See `ReceiptStore.at`. What lasts at that time is one query; each other agent's last interval is another."""
        begun = {"$lte": at}
        with translated():
            lasting = self._receipts.find({"from": begun, "$or": [{"to": None}, {"to": {"$gt": at}}]})
            found: dict[str, Document] = {}
            async for document in lasting.sort(_NEWEST):
                found.setdefault(document["name"], document)
            over = {"from": begun, "to": {"$gt": at - FORGOTTEN_AFTER, "$lte": at}}
            names = [name for name in await self._receipts.distinct("name", over) if name not in found]
            for start in range(0, len(names), _AT_ONCE):
                lasts = [self._last(name, over) for name in names[start : start + _AT_ONCE]]
                found |= {document["name"]: document for document in await asyncio.gather(*lasts) if document}
        return [_interval(document) for document in found.values()]

    async def since(self, at: datetime, *, limit: int) -> Sequence[Interval]:
        """See `ReceiptStore.since`."""
        with translated():
            found = self._receipts.find({"from": {"$gte": at}}).sort("from", ASCENDING).limit(limit)
            return [_interval(document) for document in await found.to_list()]

    async def begins(self) -> datetime | None:
        """See `ReceiptStore.begins`."""
        with translated():
            first = await self._receipts.find_one({}, {"from": True}, sort=[("from", ASCENDING)])
        return first["from"] if first else None

    async def _last(self, name: str, over: Mapping[str, Any]) -> Document | None:
        return await self._receipts.find_one({"name": name, **over}, sort=_NEWEST)

    async def _upsert(self, collection: Any, updates: Sequence[UpdateOne]) -> None:
        if not updates:
            return
        with translated():
            try:
                await collection.bulk_write(updates, ordered=False)
            except BulkWriteError as error:
                failures = error.details["writeErrors"]
                if any(each["code"] != DUPLICATE for each in failures) or error.details.get("writeConcernErrors"):
                    raise

    async def _prepare(self) -> None:
        if self._prepared:
            return
        await self._database.ensure(
            self._receipts,
            [
                IndexModel([("name", ASCENDING), ("from", DESCENDING), ("seen", DESCENDING)]),
                IndexModel([("from", ASCENDING)]),
                IndexModel([("to", ASCENDING), ("from", ASCENDING)]),
            ],
        )
        await self._database.expire(self._receipts, "to", self._seconds)
        self._prepared = True


def _update(interval: Interval) -> UpdateOne:
    document = dict(_document(interval))
    name = document.pop("_id")
    return UpdateOne({"_id": name, "seen": {"$lte": interval.seen}}, {"$set": document}, upsert=True)


def _document(interval: Interval) -> Iterator[tuple[str, Any]]:
    yield "_id", f"{interval.agent}@{interval.since.isoformat(timespec='milliseconds')}@{interval.commit}"
    yield "name", interval.agent
    yield "datacentre", interval.datacentre
    yield "agent", interval.id
    yield "scope", interval.scope
    yield "commit", interval.commit
    yield "digest", interval.digest
    yield "from", interval.since
    yield "to", interval.until
    yield "ended", interval.ended
    yield "seen", interval.seen
    yield "opa_version", interval.opa_version
    yield "error", interval.error


def _interval(document: Mapping[str, Any]) -> Interval:
    return Interval(
        agent=document["name"],
        scope=document["scope"],
        commit=document["commit"],
        since=document["from"],
        seen=document["seen"],
        until=document["to"],
        ended=document["ended"],
        digest=document["digest"],
        opa_version=document["opa_version"],
        error=document["error"],
    )
