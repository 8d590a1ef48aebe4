"""Recorded decisions asked again of two revisions, beside bare `opa eval` and beside one OPA asked over HTTP."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.report import Cell, Table
from reconciler.agent.bundle import BundleBuilder
from reconciler.agent.scope import ALL
from reconciler.agent.state import MirrorPolicy, MirrorState
from reconciler.core.model import Content, policy_name
from reconciler.core.records import Meta
from regops import toolchain
from regops.checking import replay as engine
from regops.checking.evaluator import evaluator
from regops.devstate import example_folder

RULE = "projects/billing/authz/allow"
SINGLE = 2000


def decision(number: int) -> dict[str, object]:
    refund = {"amount": number % 90, "currency": "EUR", "age_days": number % 40, "sold_by": "bob"}
    claims = {"sub": f"user-{number}", "roles": ["billing_agent"], "project": "billing"}
    return {
        "decision_id": f"d{number}",
        "path": RULE,
        "input": {"claims": claims, "action": "refund", "refund": refund},
        "result": True,
    }


def bundle(change: tuple[bytes, bytes] = (b"", b"")) -> bytes:
    """The example policies, one of them changed."""
    root, policies = example_folder() / "policies", {}
    for folder in [root / "platform", *sorted((root / "projects").iterdir())]:
        name = policy_name(folder.relative_to(root).as_posix())
        data = folder / "data.json"
        rego = (
            (folder / "rego.rego").read_bytes().replace(*change) if change[0] else (folder / "rego.rego").read_bytes()
        )
        content = Content(rego, data.read_bytes() if data.exists() else None)
        blobs = content.blob_ids()
        policies[name] = MirrorPolicy(content, Meta(blobs.etag, "", "", "", 1, blobs.rego, blobs.data))
    return BundleBuilder(ALL).build(MirrorState(None, 0, policies)).body


async def replaying(count: int, evals: int) -> Table:
    """``count`` decisions by regops, ``evals`` by `opa eval`, one process each."""
    opa = toolchain.find("opa")
    assert opa is not None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        file = folder / "decisions.ndjson"
        with file.open("w") as log:
            log.writelines(f"{json.dumps(decision(number))}\n" for number in range(count))
        bundles = bundle(), bundle((b"refund_window_days := 30", b"refund_window_days := 14"))
        began = time.perf_counter()
        found = await engine.replay(opa, bundles, (str(file),), limit=None, examples=3)
        ours = count / (time.perf_counter() - began)
        assert found.inputs == count
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        (folder / "bundle.tar.gz").write_bytes(bundles[0])
        bare = await asyncio.to_thread(evaluate, opa, folder, evals)
        posts = await posted(opa, bundles[0])
    rows: list[list[Cell]] = [
        ["regops check --replay: both revisions", count, f"{ours:,.0f}", f"{ours / bare:.0f}", f"{ours / posts:.2f}"],
        ["one OPA, one POST a decision: one revision", SINGLE, f"{posts:,.0f}", f"{posts / bare:.0f}", "1"],
        ["opa eval, a process each: one revision", evals, f"{bare:,.1f}", "1", f"{bare / posts:.4f}"],
    ]
    return Table(
        name="replay",
        says="recorded decisions a second",
        columns=["how", "decisions", "decisions/s", "beside opa eval", "beside one POST each"],
        rows=rows,
        goal=f"Each decision by regops is two: of the old and of the new revision, compared. {found.flips} of {count} "
        f"flip; the starting of both OPAs counts; peak {memory:.0f} MB in this process.",
    )


def evaluate(opa: Path, folder: Path, evals: int) -> float:
    """Decisions a second."""
    query = f"data.{RULE.replace('/', '.')}"
    began = time.perf_counter()
    for number in range(evals):
        words = [str(opa), "eval", "-b", str(folder / "bundle.tar.gz"), "--stdin-input", query]
        done = subprocess.run(
            words, input=json.dumps(decision(number)["input"]).encode(), capture_output=True, check=True
        )
        assert b"result" in done.stdout
    return evals / (time.perf_counter() - began)


async def posted(opa: Path, body: bytes) -> float:
    """Decisions a second, eight at once."""
    async with evaluator(opa, body) as one:
        url = f"http://opa/v1/data/{RULE}"

        async def some(numbers: range) -> None:
            for number in numbers:
                async with one.http.post(url, data=json.dumps({"input": decision(number)["input"]})) as answer:
                    await answer.read()

        began = time.perf_counter()
        await asyncio.gather(*(some(range(first, SINGLE, 8)) for first in range(8)))
        return SINGLE / (time.perf_counter() - began)
