"""A leader in a process of its own, for a test to pause: prints ``leading``, and writes at every line of input."""

import asyncio
import json
import sys

from reconciler.adapters.etcd import Election, EtcdStore
from reconciler.core.errors import RegopsError
from reconciler.core.ports import Put, Transaction


async def main(endpoint: str, prefix: str, ttl: int) -> None:
    store = EtcdStore([endpoint])
    async with Election(store, f"{prefix}leader", "paused", ttl).lead() as leadership:
        print("leading", flush=True)  # noqa: T201 the test reads it
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(None, sys.stdin.readline):
            valid = leadership.valid()
            write = Transaction((leadership.fence.compare(),), (Put(f"{prefix}written", b"paused"),))
            try:
                written = (await store.commit(write)).succeeded
            except RegopsError:
                written = None
            await asyncio.wait_for(leadership.lost(), 10)
            print(json.dumps({"valid": valid, "written": written}), flush=True)  # noqa: T201 the same
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
