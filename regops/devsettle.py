"""When is a `regops dev` ready? When every process answers and what the branch says is enforced, or cannot be."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, Final

import aiohttp

from reconciler.adapters.etcd import EtcdStore
from reconciler.core.errors import RegopsError
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Delete, Range, Transaction

_LONGEST: Final = 20.0
_POLL: Final = 0.03


async def settle(session: aiohttp.ClientSession, document: dict[str, Any]) -> None:
    """Wait until every OPA enforces the first commit, or the status says what is in the way; not for ever."""
    headers = {"Authorization": f"Bearer {document['tokens']['admin']}"}
    deadline = monotonic() + _LONGEST
    while monotonic() < deadline:
        try:
            async with session.get(f"{document['api']}/status", headers=headers) as answer:
                if answer.status == 200 and _settled(await answer.json(), len(document["opa"])):  # noqa: PLR2004 OK
                    return
        except (aiohttp.ClientError, TimeoutError):
            pass
        await asyncio.sleep(_POLL)


async def forget_former(document: dict[str, Any]) -> None:
    """Forget the agents of a former run with more OPAs or shards: they are gone for good, and nobody shall wait for
    them. An etcd that does not answer is no reason not to start."""
    keys, own = Keyspace(), {f"agent-{index}" for index in range(len(document["opa"]))}
    store = EtcdStore(document["etcd"])
    try:
        (found,) = (await store.read(Range(keys.receipts, prefix=True, keys_only=True))).ranges
        former = [kv.key for kv in found if kv.key.rpartition("/")[2] not in own]
        if former:
            await store.commit(Transaction((), tuple(Delete(key) for key in former)))
    except RegopsError:
        return
    finally:
        await store.aclose()


def _settled(status: dict[str, Any], opas: int) -> bool:
    applied = status["last_applied_revision"]
    if applied is None:
        return any(c["type"] == "Ready" and c["status"] == "False" for c in status["conditions"])
    done = [agent for agent in status["agents"] if agent["enforced_revision"] == applied or agent["error"]]
    return len(done) >= opas
