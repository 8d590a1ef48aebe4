"""Traces: what goes in, what goes out, and that nobody pays for them who does not want them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fakes.source import InMemorySource
from fixtures.collector import Collector
from fixtures.dev import until
from fixtures.engine import Engine
from fixtures.etcd import EtcdServer
from fixtures.git import Remote
from fixtures.opa import find_opa

from reconciler.adapters.opa import OpaCompiler
from reconciler.adapters.otel import OtelTracer
from reconciler.core.errors import StalledError, TransientError
from reconciler.core.model import project_policy
from reconciler.core.ports import Identity
from reconciler.core.records import Applied
from reconciler.core.tracing import NO_TRACER, STATE_MOST, context_in, context_of, parent_of, trace_id, traceparent
from reconciler.edits import Write
from reconciler.settings import LoopSettings, TracingSettings
from reconciler.triggers import Kind
from regops import compose

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


def tracer_of(endpoint: str, **more: float) -> OtelTracer:
    return OtelTracer(endpoint=endpoint, service="test", instance="one", version="1", **more)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (GIVEN, GIVEN),
        (f" {GIVEN} ", GIVEN),
        (f"cc-{TRACE}-{SPAN}-01-what-a-later-version-adds", GIVEN),
        (None, None),
        ("", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"{GIVEN}-more", None),
        (GIVEN.upper(), None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"{GIVEN}\n{GIVEN}", None),
        ("0" * 10_000, None),
    ],
)
def test_a_trace_context_is_read_by_the_letter_of_the_standard(text: str | None, read: str | None) -> None:
    assert traceparent(text) == read


@pytest.mark.parametrize(
    ("states", "passed_on"),
    [
        ([], ""),
        (["", " , "], ""),
        (["a=1,b@c=x-y z"], " a=1,b@c=x-y z"),
        (["a=1 ,", "\tb=2"], " a=1,b=2"),
        (["a=1,B=2"], ""),
        (["a=1,b"], ""),
        (["a=1,b=1=2"], ""),
        (["a=1\n"], ""),
        ([",".join(f"k{number}=1" for number in range(40))], f" {','.join(f'k{number}=1' for number in range(32))}"),
        ([f"a={'x' * 250}", f"b={'y' * 250}", "c=1,d=12345"], f" a={'x' * 250},b={'y' * 250},c=1"),
        (["x" * 10_000], ""),
    ],
)
def test_the_state_of_a_trace_is_passed_on_within_its_bounds(states: list[str], passed_on: str) -> None:
    context = context_of(GIVEN, states)
    assert context == f"{GIVEN}{passed_on}"
    assert len(context) <= len(GIVEN) + 1 + STATE_MOST
    assert (context_in(context), parent_of(context), trace_id(context)) == (context, GIVEN, TRACE)
    assert context_of(None, states) is None


async def test_every_span_of_a_trace_has_its_state_and_no_commit_does(collector: Collector) -> None:
    tracer = tracer_of(collector.url)
    with (
        tracer.span("outer", context_of(GIVEN, ["vendor=a-b"]), "server") as outer,
        tracer.span("inner", outer.context),
    ):
        pass
    await tracer.close()
    assert {name: spans[0].state for name, spans in collector.of(TRACE).items()} == dict.fromkeys(
        ("outer", "inner"), "vendor=a-b"
    )
    ann = Identity("Ann", "ann@example.org")
    write = Write(project_policy("a"), lambda _: None, ann, "ann", "r1", trace=outer.context)
    assert traceparent(dict(write.trailers())["Trace-Parent"]) == parent_of(outer.context or ""), (
        "it is for all to read"
    )


async def test_spans_are_sent_in_the_trace_that_they_were_given(collector: Collector) -> None:
    tracer = tracer_of(collector.url)
    with tracer.span("outer", GIVEN, "server") as outer:
        outer.tell(http__route="/x")
        with pytest.raises(StalledError), tracer.span("inner", outer.context):
            raise StalledError("no", reason="BadThing")
    now = datetime.now(UTC)
    tracer.record("past", now, now - timedelta(seconds=1), outer.context, a__b=1)
    await tracer.close()
    found = {name: spans[0] for name, spans in collector.of(TRACE).items()}
    assert (found["outer"].parent, found["inner"].parent, found["past"].parent) == (SPAN, *[found["outer"].id] * 2)
    assert (found["outer"].error, found["inner"].error) == (False, True)
    assert (found["outer"].attributes, found["inner"].attributes) == (
        {"http.route": "/x"},
        {"error.type": "BadThing"},
    )
    assert found["past"].end == found["past"].start, "nothing ends before it began"


async def test_a_trace_that_begins_here_is_kept_as_often_as_is_asked_for(collector: Collector) -> None:
    tracer = tracer_of(collector.url, ratio=0.0)
    with tracer.span("own") as own:
        assert own.context is not None
        assert not int(own.context.rpartition("-")[2], 16) & 1, "whoever comes after knows that it is not kept"
    with tracer.span("given", GIVEN):
        pass
    await tracer.close()
    assert [each.name for each in collector.spans] == ["given"]


async def test_a_collector_that_is_away_or_hangs_costs_spans_and_no_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (silent.getsockname()[1], 1):
            tracer = tracer_of(f"http://127.0.0.1:{port}", timeout=0.5)
            began = time.monotonic()
            for _ in range(10_000):
                with tracer.span("x"):
                    pass
            assert time.monotonic() - began < 5
            await tracer.close()


SILENT = """
import asyncio, sys
from regops.compose import open_tracer
from regops.process import until_signalled
from reconciler.settings import TracingSettings

async def main():
    settings = TracingSettings(endpoint=sys.argv[1], timeout=30)
    async with open_tracer(settings, service="x", instance="y") as tracer:
        for _ in range(1000):
            with tracer.span("x"):
                pass
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(until_signalled(main()))
"""


def test_a_collector_that_hangs_does_not_keep_a_process_from_ending() -> None:
    """The last spans were sent by a thread that the loop waited for when it closed: an orchestrator's patience with
    SIGTERM ended before the deliveries did, and a kill came instead of a good end."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with subprocess.Popen([sys.executable, "-c", SILENT, url], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.terminate()
            assert process.wait(10) == 0, "2 seconds are for the collector, and its time-out is 30"


def test_nobody_who_does_not_trace_imports_opentelemetry() -> None:
    script = (
        "import sys, regops.cli, regops.serving, regops.compose\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_off_is_the_same_object_each_time_and_leaves_no_mark() -> None:
    with NO_TRACER.span("a", GIVEN) as one, NO_TRACER.span("b") as other:
        assert one is other
        assert one.context is None
    record = Applied("i", "c", 1, 0, "d", "t")
    assert b"trace" not in record.encode()
    assert Applied.decode(record.encode()) == record
    traced = Applied("i", "c", 1, 0, "d", "t", trace=GIVEN)
    assert Applied.decode(traced.encode()).trace == GIVEN


async def test_a_collector_without_an_address_is_a_setting_that_is_wrong() -> None:
    with pytest.raises(StalledError, match="no http address"):
        async with compose.open_tracer(TracingSettings(endpoint="collector:4317"), service="x", instance="y"):
            pass


async def test_tracing_without_opentelemetry_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reconciler.adapters.otel", None)
    with pytest.raises(StalledError) as missing:
        async with compose.open_tracer(TracingSettings(endpoint="http://127.0.0.1:1"), service="x", instance="y"):
            pass
    assert "pip install 'regops[tracing]'" in str(missing.value)


def test_what_is_sent_arrives(collector: Collector) -> None:
    tracer = tracer_of(collector.url)
    with tracer.span("soon"):
        pass
    until(lambda: collector.spans)


# --- through the engine ----------------------------------------------------------------------------------------------


@pytest.fixture
async def compiler() -> AsyncIterator[OpaCompiler]:
    async with OpaCompiler(find_opa()) as compiler:
        yield compiler


async def test_a_webhook_begins_the_trace_of_what_it_brings(
    tmp_path: Path, etcd_server: EtcdServer, prefix: str, compiler: OpaCompiler, collector: Collector
) -> None:
    """Also where it came to a replica that does not lead, which passes it on by a key."""
    source = InMemorySource()
    source.commit({"policies/projects/a/rego.rego": b"package projects.a\n\nx := 0\n"})
    tracer = tracer_of(collector.url)
    engine = Engine(tmp_path, etcd_server.endpoint, prefix, compiler, source, tracer=tracer)
    async with engine.running():
        await engine.settled()
        for number, how in enumerate(("mailbox", "key"), 1):
            trace = f"{number}" * 32
            head = source.commit({"policies/projects/a/rego.rego": f"package projects.a\n\nx := {number}\n".encode()})
            given = f"00-{trace}-{SPAN}-01 vendor=a-b"
            if how == "mailbox":
                engine.mailbox.put(Kind.HOOK, given)
            else:
                await engine.put(engine.keys.pushed, b"hook " + given.encode())
            await engine.until_applied(head)
            applied = await engine.applied()
            assert applied is not None
            assert trace_id(applied.trace) == trace
        broken = b"hook 00-nonsense"
        head = source.commit({"README.md": b"x"})
        await engine.put(engine.keys.pushed, broken)
        await engine.until_applied(head)
    await tracer.close()
    spans = collector.of("1" * 32)
    (apply,) = spans["regops.apply"]
    (own_pass,) = collector.above(apply)
    assert own_pass.parent == SPAN
    assert own_pass.attributes["regops.wrote"] is True
    assert {each.state for each in collector.spans if each.trace in {"1" * 32, "2" * 32}} == {"vendor=a-b"}
    assert {each.parent for each in spans["etcd.txn"]} == {apply.id}


async def test_commits_that_go_live_together_show_up_each_in_its_own_trace_and_once(
    tmp_path: Path, etcd_server: EtcdServer, prefix: str, compiler: OpaCompiler, remote: Remote, collector: Collector
) -> None:
    """Of a batch only the last write's trace went on; and that one for ever, as every restart and every full comparison
    found its commit at the head again."""

    def write(number: int, on: str | None = None) -> str:
        rego = f"package projects.a\n\nx := {number}\n".encode()
        message = f"Update\n\nTrace-Parent: 00-{f'{number}' * 32}-{SPAN}-01"
        return remote.commit({"policies/projects/a/rego.rego": rego}, message=message, branch="writes", on=on)

    base = write(1)
    remote.force_push(base)
    committer = Identity("Alice Example", "alice@example.org")
    tracer = tracer_of(collector.url)
    for again in (False, True):
        engine = Engine(
            tmp_path, etcd_server.endpoint, prefix, compiler, remote.url, tracer=tracer, committer=committer
        )
        async with engine.running():
            await engine.settled()
            if not again:
                head = write(3, on=write(2, on=base))
                remote.force_push(head)  # both at once
                engine.push()
                await engine.until_applied(head)
            await engine.ask(f"compare-all-{again}")
            await engine.until(lambda engine=engine: handled(engine))  # type: ignore[misc]
    await tracer.close()
    first, second, third = (collector.of(f"{number}" * 32) for number in (1, 2, 3))
    assert [len(spans["regops.pass"]) for spans in (first, second, third)] == [1, 1, 1]
    (batched,), (own_pass,) = second["regops.pass"], third["regops.pass"]
    assert (batched.parent, batched.links) == (SPAN, (own_pass.id,))
    assert batched.attributes["regops.wrote"] is True
    assert second.keys() == {"regops.pass"}
    assert own_pass.links == ()
    assert own_pass.start <= third["regops.fetch"][0].start, "the fetch is part of it"
    own = {f"{number}" * 32 for number in (1, 2, 3)}
    others = [each for each in collector.spans if each.name == "regops.apply" and each.trace not in own]
    assert len(others) == 1, "the new leader renews applied; what writes nothing applies nothing"


async def handled(engine: Engine) -> bool:
    status = await engine.status()
    return status is not None and (status.last_handled_reconcile_at or "").startswith("compare-all")


async def test_a_remote_that_is_away_shows_in_the_trace_of_what_told_of_the_push(
    tmp_path: Path, etcd_server: EtcdServer, prefix: str, compiler: OpaCompiler, collector: Collector
) -> None:
    """The span of a pass began after its fetch: one that failed was in no trace, and the repetition began another."""
    source = InMemorySource()
    source.commit({"policies/projects/a/rego.rego": b"package projects.a\n\nx := 0\n"})
    tracer = tracer_of(collector.url)
    loop = LoopSettings(backoff_min=0.1)
    engine = Engine(tmp_path, etcd_server.endpoint, prefix, compiler, source, tracer=tracer, loop=loop)
    async with engine.running():
        await engine.settled()
        source.fail("fetch", TransientError("no route to host", reason="FetchFailed"))
        head = source.commit({"policies/projects/a/rego.rego": b"package projects.a\n\nx := 1\n"})
        engine.mailbox.put(Kind.HOOK, GIVEN)
        await engine.until_applied(head)
    await tracer.close()
    failed, wrote = collector.of(TRACE)["regops.pass"]
    assert (failed.error, failed.attributes) == (True, {"error.type": "FetchFailed"})
    assert (failed.parent, wrote.parent, wrote.error) == (SPAN, SPAN, False)
