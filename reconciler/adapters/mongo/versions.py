"""`MongoVersions`: the `VersionStore` port on three collections.

``policy_versions`` are the versions, ``policy_commits`` the pages of the ledger, ``policy_record`` the bookmark.
Whatever is inserted has an ``_id`` that follows from what it is, so that a repetition finds itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Collection as Some
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pymongo import ASCENDING, DESCENDING, DeleteMany, IndexModel, ReplaceOne, ReturnDocument, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from reconciler.adapters.mongo.client import DUPLICATE, Document, MongoDatabase, translated
from reconciler.adapters.mongo.documents import (
    LIGHT,
    page_document,
    state_fields,
    to_document,
    to_page,
    to_stored,
    to_version,
    version_id,
)
from reconciler.core.errors import TransientError
from reconciler.core.ledger import Page
from reconciler.core.model import PolicyName
from reconciler.core.record_ports import Bookmark, Place
from reconciler.core.versions import (
    APPLIED_TIMES,
    COMMIT_GONE,
    Retention,
    State,
    StoredVersion,
    Version,
    known_as_live,
    live_at,
    made_live,
    surplus,
)

_BOOKMARK: Final = "bookmark"
_PAGES_AT_ONCE: Final = 64
_POLICIES_AT_ONCE: Final = 256
_UNIQUE: Final[Document] = {"unique": True}
_VERSION_INDEXES: Final = (
    IndexModel([("policy", ASCENDING), ("version", DESCENDING)], **_UNIQUE),
    IndexModel([("policy", ASCENDING), ("commit", ASCENDING)], **_UNIQUE),
    IndexModel([("position", DESCENDING), ("policy", DESCENDING)]),
)
_PAGE_INDEXES: Final = (IndexModel([("generation", ASCENDING), ("first", ASCENDING)], **_UNIQUE),)


class MongoVersions:
    """See `VersionStore`."""

    def __init__(self, database: MongoDatabase) -> None:
        self._versions = database.collection("policy_versions")
        self._pages = database.collection("policy_commits")
        self._record = database.collection("policy_record")
        self._prepared = ""  # the generation that this process has prepared

    async def bookmark(self) -> Bookmark:
        """See `VersionStore.bookmark`."""
        with translated():
            found = await self._record.find_one({"_id": _BOOKMARK})
            if found is None or found["generation"] != self._prepared:
                found = found or await self._begun()
                await self._prepare(found["generation"])
        return Bookmark(found["generation"], found["position"])

    async def pages(self, generation: str, first: int) -> Sequence[Page]:
        """See `VersionStore.pages`."""
        with translated():
            query = {"generation": generation, "first": {"$gte": first}}
            found = await self._pages.find(query).sort("first", ASCENDING).limit(_PAGES_AT_ONCE).to_list()
        return [to_page(document) for document in found]

    async def claim(self, generation: str, page: Page) -> Page:
        """See `VersionStore.claim`."""
        document = page_document(generation, page)
        with translated():
            try:
                await self._pages.insert_one(document)
            except DuplicateKeyError:
                found = await self._pages.find_one({"_id": document["_id"]})
                if found is None:
                    message = "the record was emptied meanwhile"
                    raise TransientError(message, reason="RecordUnavailable") from None
                return to_page(found)
        return page

    async def add(self, generation: str, versions: Sequence[StoredVersion]) -> int:
        """See `VersionStore.add`."""
        if not versions:
            return 0
        documents = await asyncio.to_thread(lambda: [to_document(generation, each) for each in versions])
        with translated():
            try:
                await self._versions.insert_many(documents, ordered=False)
            except BulkWriteError as error:
                failures = error.details["writeErrors"]
                if any(each["code"] != DUPLICATE for each in failures) or error.details.get("writeConcernErrors"):
                    raise
                there = [each["index"] for each in failures]
            else:
                return len(documents)
            added = len(documents) - len(there)
            if await self._strangers(generation, {versions[index].version.policy for index in there}):
                return added + await self.add(generation, [versions[index] for index in there])
            await self._tell([(documents[index], versions[index].version) for index in there])
        return added

    async def tell(self, generation: str, versions: Sequence[StoredVersion]) -> None:
        """See `VersionStore.tell`."""
        documents = await asyncio.to_thread(lambda: [to_document(generation, each) for each in versions])
        with translated():
            await self._tell([(document, each.version) for document, each in zip(documents, versions, strict=True)])

    async def _tell(self, versions: Sequence[tuple[Document, Version]]) -> None:
        if updates := [update for document, version in versions for update in _improvements(document, version)]:
            await self._versions.bulk_write(updates, ordered=True)

    async def settle(self, live: Mapping[PolicyName, str | None], *, at: str, until: int) -> Some[PolicyName]:
        """See `VersionStore.settle`."""
        absent: list[PolicyName] = []
        for names in _slices(live):
            with translated():
                known = await self._of(names)
                found = {name: made_live(known[name], live[name], until) for name in names}
                absent += [name for name, version in found.items() if version is None]
                updates = [
                    _settled(version, at)
                    for name, version in found.items()
                    if version is not None and not known_as_live(version, known[name])
                ]
                if updates:
                    await self._versions.bulk_write(updates, ordered=False)
        return absent

    async def empty(self, generation: str) -> bool:
        """See `VersionStore.empty`."""
        with translated():
            return await self._versions.find_one({"generation": generation}, {"_id": True}) is None

    async def advance(self, generation: str, position: int) -> bool:
        """See `VersionStore.advance`."""
        with translated():
            done = await self._record.update_one(
                {"_id": _BOOKMARK, "generation": generation}, {"$max": {"position": position}}
            )
            if done.matched_count:
                return True
            await self._drop({"generation": generation})
        return False

    async def prune(self, keep: Retention, policies: Some[PolicyName] | None = None) -> int:
        """See `VersionStore.prune`."""
        if policies is None:
            with translated():
                policies = [PolicyName(name) for name in await self._versions.distinct("policy")]
        return sum([await self._prune(keep, names) for names in _slices(policies)])

    async def clear(self, generation: str) -> None:
        """See `VersionStore.clear`. The bookmark goes first: who finds it gone takes nothing else for granted."""
        with translated():
            await self._record.delete_many({"_id": _BOOKMARK, "generation": generation})
            await self._drop({"generation": generation})

    async def versions(self, policy: PolicyName, *, before: int | None = None, limit: int = 20) -> Sequence[Version]:
        """See `VersionStore.versions`."""
        query: Document = {"policy": policy}
        if before is not None:
            query["version"] = {"$lt": before}
        with translated():
            found = self._versions.find(query, LIGHT).sort("version", DESCENDING).limit(limit)
            return [to_version(document) for document in await found.to_list()]

    async def version(self, policy: PolicyName, number: int) -> StoredVersion | None:
        """See `VersionStore.version`."""
        with translated():
            found = await self._versions.find_one({"_id": version_id(policy, number)})
        return None if found is None else to_stored(found)

    async def commit_of(self, policy: PolicyName, number: int) -> str | None:
        """See `VersionStore.commit_of`. A policy's name has no dot (it is a DNS label), so it can be part of a path."""
        generation = (await self.bookmark()).generation
        path = f"numbers.{policy}"
        with translated():
            found = await self._pages.find_one(
                {"generation": generation, "entries": {"$elemMatch": {path: number}}},
            )
        entries = () if found is None else to_page(found).entries
        return next((entry.commit for entry in entries if entry.numbers.get(policy) == number), None)

    async def commits_of(
        self, policy: PolicyName, *, before: int | None = None, limit: int = 20
    ) -> Sequence[tuple[int, str]]:
        """See `VersionStore.commits_of`."""
        generation = (await self.bookmark()).generation
        query = {"generation": generation, "entries": {"$elemMatch": {f"numbers.{policy}": {"$exists": True}}}}
        found: list[tuple[int, str]] = []
        with translated():
            async for document in self._pages.find(query).sort("first", DESCENDING).batch_size(4):
                entries = [entry for entry in to_page(document).entries if policy in entry.numbers]
                own = [(entry.numbers[policy], entry.commit) for entry in reversed(entries)]
                found += [each for each in own if before is None or each[0] < before]
                if len(found) >= limit:
                    break
        return found[:limit]

    async def recent(self, *, before: Place | None = None, limit: int = 20) -> Sequence[Version]:
        """See `VersionStore.recent`."""
        query: Document = {}
        if before is not None:
            same = {"position": before.position, "policy": {"$lt": before.policy}}
            query = {"$or": [{"position": {"$lt": before.position}}, same]}
        with translated():
            order = [("position", DESCENDING), ("policy", DESCENDING)]
            found = await self._versions.find(query, LIGHT).sort(order).limit(limit).to_list()
        return [to_version(document) for document in found]

    async def live_at(self, policy: PolicyName, at: str) -> Version | None:
        """See `VersionStore.live_at`."""
        with translated():
            return live_at((await self._of([policy]))[policy], at)

    async def all_live_at(self, at: str) -> Mapping[PolicyName, Version | None]:
        """See `VersionStore.all_live_at`."""
        found: dict[PolicyName, Version | None] = {}
        with translated():
            names = [PolicyName(name) for name in await self._versions.distinct("policy")]
            for part in _slices(names):
                found |= {policy: live_at(versions, at) for policy, versions in (await self._of(part)).items()}
        return found

    async def _prepare(self, generation: str) -> None:
        """Make the indexes, once what a record before this one has left is gone: it may stand in their way. What
        another recorder of this one has written meanwhile stays."""
        await self._drop({"generation": {"$ne": generation}})
        try:
            await self._versions.create_indexes(list(_VERSION_INDEXES))
            await self._pages.create_indexes(list(_PAGE_INDEXES))
        except DuplicateKeyError as error:
            await self.clear(generation)
            message = "documents of the record repeat each other; it is begun anew from Git"
            raise TransientError(message, reason="RecordDamaged") from error
        self._prepared = generation

    async def _strangers(self, generation: str, policies: Some[PolicyName]) -> bool:
        """Whether another record's versions stood in the way; they are gone then. One that has ended may still have
        been written to: a network gives no word when a server takes something late."""
        others = {"policy": {"$in": list(policies)}, "generation": {"$ne": generation}}
        if await self._versions.find_one(others, {"_id": True}) is None:
            return False
        mark = await self._record.find_one({"_id": _BOOKMARK})
        if mark is None or mark["generation"] != generation:
            raise TransientError("the record was begun anew meanwhile", reason="RecordUnavailable")
        await self._versions.delete_many(others)
        return True

    async def _drop(self, query: Document) -> None:
        await self._pages.delete_many(query)
        await self._versions.delete_many(query)

    async def _begun(self) -> Document:
        """The bookmark, begun where there is none."""
        new = {"$setOnInsert": {"generation": secrets.token_hex(8), "position": 1}}
        for _ in range(2):
            try:
                found = await self._record.find_one_and_update(
                    {"_id": _BOOKMARK}, new, upsert=True, return_document=ReturnDocument.AFTER
                )
            except DuplicateKeyError:  # another recorder was first; the next look finds its bookmark
                continue
            if found is not None:
                return found
        raise TransientError("the record's bookmark could not be made", reason="RecordUnavailable")

    async def _of(self, policies: Some[PolicyName]) -> Mapping[PolicyName, Sequence[Version]]:
        found: dict[PolicyName, list[Version]] = defaultdict(list)
        async for document in self._versions.find({"policy": {"$in": list(policies)}}, LIGHT):
            version = to_version(document)
            found[version.policy].append(version)
        return found

    async def _prune(self, keep: Retention, policies: Sequence[PolicyName]) -> int:
        with translated():
            known = await self._of(policies)
            deletions = [each for some in known.values() for each in _deletions(surplus(some, keep))]
            if not deletions:
                return 0
            return (await self._versions.bulk_write(deletions, ordered=False)).deleted_count


def _improvements(document: Document, version: Version) -> Iterator[UpdateOne | ReplaceOne[Document]]:
    """What `better` says, as updates that compare: another recorder may write at the same time."""
    same = {"policy": document["policy"], "commit": document["commit"], "generation": document["generation"]}
    if version.reason == COMMIT_GONE:
        return
    yield ReplaceOne({**same, "version": document["version"], "reason": COMMIT_GONE}, document)
    if version.inferred:
        return
    lower = [str(state) for state in State if state.rank < version.state.rank]
    worse: list[Document] = [{"state": {"$in": lower}}, {"inferred": True}]
    yield UpdateOne({**same, "reason": {"$ne": COMMIT_GONE}, "$or": worse}, {"$set": state_fields(version)})


def _settled(version: Version, at: str) -> UpdateOne:
    state: Any = {"state": str(State.APPLIED), "reason": "", "message": "", "inferred": False}
    times = {"applied_at": {"$each": [at], "$sort": 1, "$slice": -APPLIED_TIMES}}
    return UpdateOne(
        {"_id": version_id(version.policy, version.version), "applied_at": {"$ne": at}}, {"$set": state, "$push": times}
    )


def _deletions(versions: Sequence[Version]) -> Iterator[DeleteMany]:
    """Delete these versions of a policy, but none that became live meanwhile."""
    for state in State:
        numbers = [each.version for each in versions if each.state is state]
        if numbers:
            yield DeleteMany({"policy": versions[0].policy, "version": {"$in": numbers}, "state": str(state)})


def _slices(policies: Some[PolicyName]) -> Iterator[Sequence[PolicyName]]:
    names = list(policies)
    for start in range(0, len(names), _POLICIES_AT_ONCE):
        yield names[start : start + _POLICIES_AT_ONCE]
