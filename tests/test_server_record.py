"""A server with MongoDB: what it applies is recorded, and nothing waits for the record."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fixtures.etcd import EtcdServer, eventually
from fixtures.mongo import MongoServer
from fixtures.replicas import Replica, World, open_world, rego

from reconciler.adapters.mongo import MongoAudit, MongoDatabase, MongoVersions
from reconciler.core.model import project_policy
from reconciler.core.record_ports import AuditQuery, Bookmark
from reconciler.core.versions import State
from reconciler.settings import MongoSettings

ALPHA = project_policy("alpha")


async def conditions(replica: Replica) -> set[str]:
    return {each["type"] for each in (await replica.call("GET", "/status")).body["conditions"]}


async def test_writes_and_pushes_are_recorded_also_those_of_an_outage(
    tmp_path: Path, etcd_server: EtcdServer, mongo_server: MongoServer
) -> None:
    database = MongoDatabase(mongo_server.uri, timeout=5.0)
    versions, audit = MongoVersions(database), MongoAudit(database)

    async def applied() -> list[int]:
        found = await versions.versions(ALPHA)
        return [each.version for each in found if each.state is State.APPLIED]

    async with open_world(tmp_path, etcd_server) as world:
        settings = MongoSettings(uri=mongo_server.uri, timeout=0.5)
        async with world.replica(mongo=settings) as replica:
            first = await replica.put("alpha", "one", If_Match=await _etag(replica, world))
            assert first.status == 200
            await eventually(lambda: _is(applied, [2, 1]))
            stored = await versions.version(ALPHA, 2)
            assert stored is not None
            assert stored.version.info.commit == first.commit
            assert stored.version.etag == first.etag
            await asyncio.to_thread(mongo_server.stop)
            second = await replica.put("alpha", "two", If_Match=first.etag)
            assert (second.status, second.headers["Policy-Sync"]) == (200, "live")
            third = await replica.put("alpha", "three", If_Match=second.etag)
            assert (third.status, third.headers["Policy-Sync"]) == (200, "live")
            await asyncio.to_thread(mongo_server.start)
            await eventually(lambda: _is(applied, [4, 3, 2, 1]), 20)
            events = await _events(audit, 3)
            assert [event["result"] for event in events] == ["updated"] * 3
            assert "RecordDelayed" not in await conditions(replica)
    await database.aclose()


async def test_the_record_is_the_same_after_its_loss(
    tmp_path: Path, etcd_server: EtcdServer, mongo: MongoDatabase
) -> None:
    """Drill: somebody drops the database; a server that starts fills it again."""
    versions = MongoVersions(mongo)

    async def record(world: World, commits: int) -> dict[int, tuple[str, str | None]]:
        settings = MongoSettings(uri=_uri(mongo), database=mongo.collection("x").database.name)
        async with world.replica(reconciler=True, mongo=settings):
            await eventually(lambda: _recorded(versions, commits))
        return {each.version: (each.info.commit, each.etag) for each in await versions.versions(ALPHA)}

    async with open_world(tmp_path, etcd_server) as world:
        for number in range(12):
            world.remote.commit({"policies/projects/alpha/rego.rego": rego("alpha", str(number)).encode()})
        before = await record(world, 13)
        assert sorted(before) == [9, 10, 11, 12, 13]
        await versions.clear((await versions.bookmark()).generation)
        assert await record(world, 13) == before


async def _recorded(versions: MongoVersions, commits: int) -> bool:
    mark: Bookmark = await versions.bookmark()
    return mark.position == commits + 1


async def _is(found: object, wanted: list[int]) -> bool:
    result: list[int] = await found()  # type: ignore[operator]
    return result == wanted


async def _events(audit: MongoAudit, count: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []

    async def there() -> bool:
        events, _ = await audit.events(AuditQuery(resource="projects/alpha", action="put"))
        found[:] = [dict(event) for event in events]
        return len(found) >= count

    await eventually(there, 20)
    return found


async def _etag(replica: Replica, world: World) -> str:
    return (await replica.call("GET", "/policies/alpha", Policy_Min_Commit=world.remote.head)).etag


def _uri(mongo: MongoDatabase) -> str:
    host, port = next(iter(mongo.collection("x").database.client._topology_settings.seeds))
    return f"mongodb://{host}:{port}"
