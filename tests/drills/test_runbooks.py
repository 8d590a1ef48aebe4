"""The runbooks, done for real: a server, an agent with its OPA, etcd, MongoDB and Git, and one of them is lost.

`-s` prints how long each took: the figures of docs/runbooks/.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from click.testing import CliRunner
from fixtures.etcd import EtcdServer, eventually
from fixtures.git import Remote
from fixtures.mongo import MongoServer
from fixtures.opa import OpaServer
from fixtures.replicas import Answer, Replica, World, open_world, rego
from prometheus_client import CollectorRegistry

from reconciler.agent.agent import Agent, AgentConfig
from reconciler.agent.opa_config import opa_config
from reconciler.core.errors import RegopsError
from reconciler.core.live import decode_live, live_ranges
from reconciler.settings import GitSettings, MongoSettings
from regops.cli import main

RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"


class Site:
    """Everything, and what people see of it."""

    def __init__(self, world: World, replica: Replica, opa: OpaServer) -> None:
        self.world = world
        self.replica = replica
        self.opa = opa
        self.enforced: list[str] = []
        """Every revision that the OPA was seen with, each once, in order."""

    async def put(self, word: str) -> Answer:
        current = await self.replica.get("/policies/alpha?ref=head")
        done = await self.replica.put("alpha", word, query="?wait=active", If_Match=current.etag)
        assert (done.status, done.headers["Policy-Sync"]) == (200, "active")
        return done

    async def etags(self) -> dict[str, str]:
        answer = await self.replica.get("/policies")
        return {each["policy"]: each["etag"] for each in answer.body["items"]} if answer.status == 200 else {}

    async def status(self) -> Any:
        return (await self.replica.get("/status")).body

    async def well(self) -> bool:
        status = await self.status()
        return (status["sync"]["status"], status["health"]["status"]) == ("Synced", "Healthy")

    async def decides(self, word: str) -> bool:
        return bool(await self.opa.query("projects/alpha/mark") == word)

    async def watch(self) -> None:
        while True:
            revision = await self.opa.revision()
            if revision is not None and [revision] != self.enforced[-1:]:
                self.enforced.append(revision)
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def agent(world: World, folder: Path) -> AsyncIterator[OpaServer]:
    store, opa = world.store(), OpaServer(folder / "enforcing")
    config = AgentConfig(datacentre="east", id="one", state_dir=folder / "agent", port=0)
    try:
        async with Agent(store, config, keyspace=world.keys, registry=CollectorRegistry()).running() as running:
            opa.config = opa_config(running.url)
            await opa.start()
            yield opa
    finally:
        await opa.stop()
        await store.aclose()


@contextlib.asynccontextmanager
async def running(folder: Path, etcd: EtcdServer, **changed: Any) -> AsyncIterator[Site]:
    async with (
        open_world(folder, etcd) as world,
        agent(world, folder) as opa,
        world.replica(**changed) as replica,
    ):
        site = Site(world, replica, opa)
        await eventually(site.well, 20)
        watching = asyncio.ensure_future(site.watch())
        try:
            yield site
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    began = monotonic()
    yield
    sys.stdout.write(f"drill: {what}: {monotonic() - began:.1f} s\n")


def order(remote: Remote) -> list[str]:
    words = ["git", f"--git-dir={remote.path}", "rev-list", "--first-parent", "--reverse", "main"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


def says(page: str, command: str) -> str:
    """A command of the runbook, which is what the drill runs."""
    assert command in (RUNBOOKS / page).read_text(), f"{page}: {command}"
    return command


async def test_an_etcd_that_lost_everything_is_filled_from_git(tmp_path: Path, etcd: EtcdServer) -> None:
    async with running(tmp_path, etcd) as site:
        await site.put("one")
        before, versions = await site.etags(), (await site.replica.get("/policies/alpha/versions")).body["items"]
        await asyncio.to_thread(etcd.stop)
        assert await site.decides("one"), "OPAs go on with what they have"
        await asyncio.to_thread(etcd.wipe)
        with timed("etcd lost, until every policy is live and enforced again"):
            await asyncio.to_thread(etcd.start)
            await eventually(lambda: stands(site, before), 30)
            await eventually(site.well, 30)
        assert await site.decides("one")
        after = (await site.replica.get("/policies/alpha/versions")).body["items"]
        assert [(each["version"], each["etag"]) for each in after] == [(e["version"], e["etag"]) for e in versions]
        commits = order(site.world.remote)
        places = [commits.index(revision) for revision in site.enforced]
        assert places == sorted(places), "no OPA went back"
        await site.put("two")


async def stands(site: Site, etags: dict[str, str]) -> bool:
    """Whether etcd itself has exactly these policies: the mirror of a replica may still show what was."""
    store = site.world.store()
    try:
        live = decode_live(site.world.keys, await store.read(*live_ranges(site.world.keys)))
    except RegopsError:
        return False
    finally:
        await store.aclose()
    return {str(name): policy.etag for name, policy in live.written().items()} == etags and await site.etags() == etags


async def test_an_etcd_that_was_restored_from_before_the_branch_comes_up_to_it(
    tmp_path: Path, etcd: EtcdServer
) -> None:
    async with running(tmp_path, etcd) as site:
        await site.put("old")
        await asyncio.to_thread(etcd.stop)
        await asyncio.to_thread(etcd.save)
        await asyncio.to_thread(etcd.start)
        await eventually(site.well, 30)
        await site.put("new")
        before = await site.etags()
        await asyncio.to_thread(etcd.stop)
        await asyncio.to_thread(etcd.restore)
        with timed("etcd restored from before, until the branch's head is live again"):
            await asyncio.to_thread(etcd.start)
            await eventually(lambda: stands(site, before), 30)
            await eventually(site.well, 30)
        assert await site.decides("new")
        commits = order(site.world.remote)
        places = [commits.index(revision) for revision in site.enforced]
        assert places == sorted(places), "no OPA went back to what the snapshot had"


async def test_a_lost_mongodb_is_filled_again_with_the_same_numbers(
    tmp_path: Path, etcd: EtcdServer, mongo_server: MongoServer
) -> None:
    mongo = MongoSettings(uri=mongo_server.uri, timeout=0.5)

    async def history(replica: Replica) -> list[tuple[Any, ...]]:
        page = (await replica.get("/policies/alpha/versions?limit=100")).body
        if page["missing"]:
            return []
        return [(each["version"], each["etag"], each["commit"], each["state"]) for each in page["items"]]

    async with running(tmp_path, etcd, mongo=mongo) as site:
        for word in ("one", "two", "three"):
            await site.put(word)
        await eventually(lambda: _has(history(site.replica), 4))
        before = await history(site.replica)
        await asyncio.to_thread(mongo_server.stop)
        await asyncio.to_thread(shutil.rmtree, mongo_server.folder / "data")
        assert (await site.put("four")).status == 200, "nothing waits for the record"
        fallen = (await site.replica.get("/policies/alpha/versions")).body
        assert (len(fallen["items"]), "MongoDB" in fallen["missing"]) == (5, True)
        with timed("MongoDB lost, until every version is recorded again"):
            await asyncio.to_thread(mongo_server.start)
            await eventually(lambda: _has(history(site.replica), 5), 30)
        assert (await history(site.replica))[1:] == before
        stored = (await site.replica.get("/policies/alpha/versions/2")).body
        assert stored["rego"] == rego("alpha", "one")


async def test_a_lost_remote_is_restored_from_the_mirror_of_a_replica(tmp_path: Path, etcd: EtcdServer) -> None:
    """The last write was accepted a moment before, and no fetch has seen it."""
    remote = (tmp_path / "remote.git").absolute()
    slow = GitSettings(remote=remote.as_uri(), poll_interval=1.0)
    async with running(tmp_path, etcd, git=slow) as site:
        last = await site.put("last")
        before = await site.etags()
        await asyncio.to_thread(shutil.rmtree, remote)
        await eventually(lambda: _condition(site, "FetchFailed"), 20)
        assert await site.decides("last"), "what is live stays live"
        refused = await site.replica.put("alpha", "x", If_Match=last.etag)
        assert (refused.status, refused.code) == (503, "unavailable")
        new, exported = tmp_path / "new.git", tmp_path / "policies.git"
        with timed("Git remote lost, from the export until a write is live"):
            mirror = str(site.replica.settings.server.state / "mirror.git")
            words = says("git-remote-lost.md", "regops mirror export policies.git").split()[1:-1]
            done = await asyncio.to_thread(CliRunner().invoke, main, [*words, str(exported), "--mirror", mirror])
            assert done.exit_code == 0, done.output
            assert last.commit in done.stdout
            assert "3 policies at its head" in done.stdout
            said = [*words, str(tmp_path / "other.git"), "--mirror", mirror, "--json"]
            told = json.loads((await asyncio.to_thread(CliRunner().invoke, main, said)).stdout)
            assert (told["branch"], told["policies"], told["head"]["commit"]) == ("main", 3, last.commit)
            await asyncio.to_thread(_git, "init", "-q", "--bare", "-b", "main", str(new))
            command = says("git-remote-lost.md", "git --git-dir=policies.git push NEW-REMOTE main").split()[2:]
            push = [new.as_uri() if word == "NEW-REMOTE" else word for word in command]
            await asyncio.to_thread(_git, f"--git-dir={exported}", *push)
            await asyncio.to_thread(new.rename, remote)
            await eventually(lambda: _writes(site, last.etag), 30)
        assert {name: etag for name, etag in (await site.etags()).items() if name != "projects/alpha"} == {
            name: etag for name, etag in before.items() if name != "projects/alpha"
        }
        assert order(Remote(remote))[-2] == last.commit
        again = await asyncio.to_thread(CliRunner().invoke, main, [*words, str(exported), "--mirror", mirror])
        assert (again.exit_code, "is there already" in again.output) == (1, True)


async def _has(call: Any, count: int) -> bool:
    return len(await call) == count


async def _condition(site: Site, name: str) -> bool:
    return name in {each["type"] for each in (await site.status())["conditions"]}


async def _writes(site: Site, etag: str) -> bool:
    done = await site.replica.put("alpha", "after", If_Match=etag)
    return done.status == 200 and done.headers["Policy-Sync"] == "live"


def _git(*words: str) -> None:
    subprocess.run(["git", *words], check=True, capture_output=True)


@pytest.mark.parametrize("page", ["etcd-lost", "etcd-restored-old", "git-remote-lost", "mongodb-lost"])
def test_each_runbook_tells_what_an_operator_asks_first(page: str) -> None:
    text = (RUNBOOKS / f"{page}.md").read_text()
    for heading in ("## What you see", "## What goes on working", "## What to do", "## How to know that it is over"):
        assert heading in text, heading
    assert "RTO" in text
    assert "RPO" in text
