"""`OtelTracer`: the `Tracer` port on OpenTelemetry's SDK, with OTLP over HTTP. Imported only where tracing is set up.

Spans wait in a bounded queue and are sent by a thread of the SDK's own: a collector that is away costs spans, never
time. The variables OTEL_EXPORTER_OTLP_HEADERS, _CERTIFICATE, _COMPRESSION and OTEL_RESOURCE_ATTRIBUTES count too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from datetime import datetime
from typing import Any, Final, Self

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from reconciler.core.tracing import Attribute

_KINDS: Final = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "client": SpanKind.CLIENT}
_QUEUE: Final = 4096
_CLOSING: Final = 2.0
"""Seconds in which the last spans are sent when the process ends."""

# A collector that is away would be a line for every batch.
logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").setLevel(logging.CRITICAL)
logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.CRITICAL)


class OtelTracer:
    """Sends spans to ``endpoint``, the base address of an OTLP/HTTP collector. Call `close` at the end."""

    enabled = True

    def __init__(
        self, *, endpoint: str, service: str, instance: str, version: str, ratio: float = 1.0, timeout: float = 5.0
    ) -> None:
        """``ratio`` of the traces that begin here are kept; those that come from elsewhere are kept as it was said
        there."""
        names = {"service.name": service, "service.instance.id": instance, "service.version": version}
        self._provider = TracerProvider(
            resource=Resource.create(names), sampler=ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False
        )
        self._exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=timeout)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter, max_queue_size=_QUEUE, schedule_delay_millis=500, max_export_batch_size=512
            )
        )
        self._tracer = self._provider.get_tracer("regops", version)

    def span(
        self, name: str, parent: str | None = None, kind: str = "internal", *, start: datetime | None = None
    ) -> _Block:
        """See `Tracer.span`."""
        began = _nanoseconds(start) if start else None
        return _Block(self._tracer.start_span(name, _context(parent), _KINDS[kind], start_time=began))

    def record(
        self,
        name: str,
        start: datetime,
        end: datetime,
        parent: str | None = None,
        *,
        link: str | None = None,
        **attributes: Attribute,
    ) -> None:
        """See `Tracer.record`. Clocks may disagree: nothing ends before it began."""
        began = _nanoseconds(start)
        links = [trace.Link(_span_context(link))] if link else []
        span = self._tracer.start_span(name, _context(parent), start_time=began, links=links)
        span.set_attributes({key.replace("__", "."): value for key, value in attributes.items()})
        span.end(max(began, _nanoseconds(end)))

    async def close(self) -> None:
        """Send what waits, for a moment; what is left then is lost.

        In a thread of its own that nobody waits for: the SDK's time-outs bound neither a delivery nor its repetitions,
        and the process would not end before the threads of the loop's executor have.
        """
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def send() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop is closed, nobody has waited
                loop.call_soon_threadsafe(sent.set)

        threading.Thread(target=send, name="last spans", daemon=True).start()
        try:
            async with asyncio.timeout(_CLOSING):
                await sent.wait()
        except TimeoutError:
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # no further attempt


class _Block:
    """A span that is under way, and its own context manager."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        found = span.get_span_context()
        parent = f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"
        self.context: str | None = f"{parent} {found.trace_state.to_header()}" if found.trace_state else parent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.fail(getattr(error, "reason", None) or type(error).__name__)
        self._span.end()

    def tell(self, **attributes: Attribute) -> None:
        """See `Span.tell`."""
        self._span.set_attributes({name.replace("__", "."): value for name, value in attributes.items()})

    def fail(self, why: str) -> None:
        """See `Span.fail`."""
        self._span.set_status(Status(StatusCode.ERROR, why))
        self._span.set_attribute("error.type", why)


def _context(parent: str | None) -> Any:
    """What OpenTelemetry calls a context; an empty one begins a trace, whatever else runs in this thread."""
    if parent is None:
        return trace.set_span_in_context(trace.INVALID_SPAN)
    return trace.set_span_in_context(NonRecordingSpan(_span_context(parent)))


def _span_context(context: str) -> SpanContext:
    parent, _, state = context.partition(" ")
    _, trace_id, span_id, flags = parent.split("-")
    return SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(flags, 16)),
        trace_state=TraceState.from_header([state]) if state else None,
    )


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000
