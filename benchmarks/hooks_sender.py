"""``python -m benchmarks.hooks_sender PORT FILE``: sends the request in FILE again and again until its input ends.

In a process of its own, so that nothing but the server is waited for. It prints the seconds of each as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from benchmarks.api_client import Next, run, status

EVERY = 0.02
"""Seconds between two hooks: far more than any host sends."""


def main(port: int, hook: bytes, over: threading.Event) -> list[float]:
    """Hooks at fixed times. One that has to wait for the one before it has waited since its own time."""
    due, found = time.perf_counter(), list[float]()

    def following(former: bytes | None) -> bytes | None:
        nonlocal due
        if former is not None:
            if status(former) != 202:
                raise SystemExit(f"not 202: {former[:600]!r}")
            found.append(time.perf_counter() - due)
            due += EVERY
        return None if over.wait(max(0.0, due - time.perf_counter())) else hook

    each: list[Next] = [following]
    run(("127.0.0.1", port), each)
    return found


def _until_input_ends(over: threading.Event) -> None:
    os.read(0, 1)
    over.set()


if __name__ == "__main__":
    ended = threading.Event()
    threading.Thread(target=_until_input_ends, args=(ended,), daemon=True).start()
    print(json.dumps(main(int(sys.argv[1]), Path(sys.argv[2]).read_bytes(), ended)))
