"""Histories that were recorded wrongly once. Each is told as the steps of tests/record_laboratory.py."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from fakes.record import InMemoryVersions
from fakes.source import InMemorySource
from prometheus_client import CollectorRegistry
from record_laboratory import ALL, Laboratory, small_steps

from reconciler.core.ledger import Entry, Page
from reconciler.core.model import PLATFORM, PolicyName, project_policy
from reconciler.core.versions import Hold, Retention, Seen
from reconciler.metrics import RecorderMetrics
from reconciler.recorder import WEIGHT_LIMIT, Recorder
from reconciler.settings import LoopSettings

FEW = Retention(2, 1)
P = "platform"

STORIES: dict[str, tuple[Retention, int, list[tuple[Any, ...]]]] = {
    # One datacentre had not heard of a commit yet, the other had recorded it: what the first one's passes told of the
    # commits before was dropped, since the bookmark was past them.
    "what a pass tells behind the bookmark": (
        ALL,
        2,
        [
            ("put", P, "a"),
            ("look", 1),
            ("put", P, "b"),
            ("arrive", 0, ()),
            ("record", (0,)),
            ("pass", 1, ()),
            ("record", (1,)),
            ("arrive", 1, ()),
            ("record", (1,)),
        ],
    ),
    # A version that had been applied and was deleted as too old came back as superseded.
    "nothing that was deleted comes back": (
        FEW,
        2,
        [
            ("put", P, "a"),
            ("pass", 1, ()),
            ("arrive", 0, ()),
            ("put", P, "b"),
            ("look", 0),
            ("pass", 0, ()),
            ("arrive", 1, ()),
            ("put", P, "c"),
        ],
    ),
    # A held version was deleted as too old, then the branch was rewound to it: what was live was not in the record.
    "a rewound branch brings back what was deleted": (
        FEW,
        1,
        [("put", P, "a"), ("pass", 0, (P,)), ("look", 0), ("pass", 0, (P,)), ("rewind", 1)],
    ),
    # Three steps back, one after the other: the version that is live is old, and was deleted as too old at once.
    "the live version stays, however old it is": (
        FEW,
        1,
        [("put", P, "a"), ("put", P, "b"), ("put", P, "c"), ("arrive", 0, ()), ("record", (0,)), ("rewind", 3)],
    ),
    # The commit that was applied last was never recorded, and the branch was rewritten meanwhile: it had no number.
    "what was applied by a process that died": (
        ALL,
        1,
        [("put", P, "a"), ("arrive", 0, ()), ("crash", 0, 0), ("rewind", 1), ("put", P, "b")],
    ),
    # A process died between giving a commit its place and writing its versions, and the branch was rewound: they were
    # not written before the next new commit.
    "places without versions": (
        ALL,
        1,
        [("put", P, "a"), ("look", 0), ("pass", 0, ()), ("rewind", 1), ("look", 0), ("pass", 0, ()), ("crash", 0, 11)],
    ),
    # The same, where the bookmark was past the commit that the branch was rewound to.
    "places without versions, beyond the bookmark": (
        ALL,
        2,
        [
            ("put", P, "a"),
            ("put", P, "a"),
            ("put", P, "a"),
            ("arrive", 1, ()),
            ("rewind", 2),
            ("look", 0),
            ("rewind", 1),
            ("arrive", 1, ()),
            ("crash", 1, 9),
        ],
    ),
    # Only one datacentre had a commit of the former branch; the other had numbered it without its content, and nobody
    # filled that in.
    "who has a commit fills it in": (
        ALL,
        2,
        [
            ("arrive", 1, ()),
            ("record", (1,)),
            ("put", P, "a"),
            ("arrive", 1, (P,)),
            ("rewind", 1),
            ("put", P, "b"),
            ("arrive", 0, ()),
            ("fault", "add"),
            ("record", (1,)),
            ("record", (0,)),
            ("record", (1,)),
        ],
    ),
    # A first recorder died after inserting versions and before deleting any: the second one found nothing to delete.
    "a new record whose recorder died": (
        FEW,
        1,
        [("pass", 0, ()), ("turn", P, "a"), ("look", 0), ("pass", 0, ()), ("crash", 0, 15)],
    ),
    # Applied in one place and unrecorded there, inferred by another place: it stayed inferred.
    "an inferred version is told later": (
        ALL,
        2,
        [("put", P, ""), ("pass", 0, ()), ("arrive", 1, ()), ("record", (1,))],
    ),
    # Both datacentres went on from different heads: the one said that the other's versions were live in it.
    "a pass tells of its own line only": (
        ALL,
        2,
        [
            ("put", P, "a"),
            ("look", 1),
            ("rewind", 1),
            ("put", P, "b"),
            ("look", 0),
            ("pass", 1, ()),
            ("record", (1,)),
            ("put", "projects/alpha", "x"),
            ("arrive", 0, ()),
            ("record", (0,)),
        ],
    ),
    # The same content twice, and a datacentre that is behind: the newer one was said to be live there.
    "a version is live with its commit or a later one": (
        ALL,
        2,
        [
            ("put", P, "a"),
            ("look", 1),
            ("put", P, "b"),
            ("put", P, "a"),
            ("arrive", 0, (P,)),
            ("record", (0,)),
            ("pass", 1, ()),
            ("record", (1,)),
        ],
    ),
    # Somebody dropped one collection of three: versions were never written again, since the bookmark was past them.
    "the pages are lost": (ALL, 1, [("put", P, "a"), ("arrive", 0, ()), ("record", (0,)), ("lose", "pages")]),
    "the pages of a rewritten branch are lost": (
        ALL,
        1,
        [
            ("put", P, "a"),
            ("arrive", 0, ()),
            ("record", (0,)),
            ("rewind", 1),
            ("put", P, "b"),
            ("arrive", 0, ()),
            ("record", (0,)),
            ("lose", "pages"),
            ("put", P, "c"),
        ],
    ),
    "the versions are lost": (ALL, 1, [("put", P, "a"), ("arrive", 0, ()), ("record", (0,)), ("lose", "versions")]),
    "the bookmark is lost": (ALL, 1, [("put", P, "a"), ("arrive", 0, ()), ("record", (0,)), ("lose", "bookmark")]),
    # The database was dropped in the middle of a pass, which counted as recorded.
    "the database vanishes": (
        ALL,
        1,
        [("put", P, "a"), ("put", P, "b"), ("arrive", 0, ()), ("vanish", "advance"), ("record", (0,))],
    ),
}


@pytest.mark.parametrize("story", STORIES)
async def test_it_is_recorded_as_a_plain_reading_has_it(story: str) -> None:
    keep, sites, actions = STORIES[story]
    whole = sites == 1 and not any(kind in {"lose", "vanish"} for kind, *_ in actions)
    await Laboratory(keep, sites).run(actions, whole=whole)
    with small_steps():
        await Laboratory(keep, sites).run(actions, whole=whole)
    for steps in range(40) if any(kind == "crash" for kind, *_ in actions) else ():  # wherever it is cut off
        other = [(kind, what[0], steps) if kind == "crash" else (kind, *what) for kind, *what in actions]
        await Laboratory(keep, sites).run(other, whole=whole)


async def test_a_restored_database_that_others_went_on_with_is_read_anew() -> None:
    """An older backup was restored and another recorder wrote pages of other commits where this one's had been. Its
    remembered ledger did not fit: it cleared the record, and with it the numbers of every rewritten branch."""
    source, store = InMemorySource(), InMemoryVersions()
    first = source.commit({"policies/platform/rego.rego": b"1"})
    source.commit({"policies/platform/rego.rego": b"2"})
    own = _recorder(source, store)
    own.note(Seen(await source.fetch(), None, "2026-01-01T00:00:00.000Z"))
    await own.catch_up()
    mark = await store.bookmark()
    other = source.commit({"policies/platform/rego.rego": b"3"}, on=first)
    await source.fetch()
    store._pages.clear()
    store._pages[1] = Page(1, (Entry(first, {PLATFORM: 1}), Entry(other, {PLATFORM: 2})))
    store.stored.pop((PLATFORM, 2))
    last = source.commit({"policies/projects/alpha/rego.rego": b"x"}, on=other)
    own.note(Seen(await source.fetch(), other, "2026-01-01T00:00:01.000Z"))
    await own.catch_up()
    assert (await store.bookmark()).generation == mark.generation
    assert store._pages[3].entries == (Entry(last, {project_policy("alpha"): 1}),)


async def test_a_pass_whose_commit_is_gone_from_every_mirror_does_not_stop_those_after_it() -> None:
    """The branch was rewritten while MongoDB was away, and the mirror was cloned anew: the recorder asked for the old
    commit for ever, and recorded nothing more."""
    source, store = InMemorySource(), InMemoryVersions()
    first = source.commit({"policies/platform/rego.rego": b"1"})
    own = _recorder(source, store)
    source.commit({"policies/platform/rego.rego": b"2"})
    own.note(Seen(await source.fetch(), first, "2026-01-01T00:00:00.000Z"))
    source._fetched.clear()
    new = source.commit({"policies/platform/rego.rego": b"3"}, on=first)
    own.note(Seen(await source.fetch(), first, "2026-01-01T00:00:01.000Z"))
    await own.catch_up()
    assert [each.info.commit for each in await store.versions(PLATFORM)] == [new, first]


def test_passes_that_hold_a_thousand_policies_do_not_fill_the_memory() -> None:
    """MongoDB was away for hours while 1,000 policies were held: 10,000 passes each kept all their names."""
    own = _recorder(InMemorySource(), InMemoryVersions())
    for number in range(400):
        held = {PolicyName(f"projects/p{n}"): Hold("ValidationFailed", f"{number}") for n in range(1000)}
        own.note(Seen(f"{number:040x}", None, "2026-01-01T00:00:00.000Z", {}, held))
    assert sum(len(each.seen.held) for each in own._waiting) <= WEIGHT_LIMIT
    own = _recorder(InMemorySource(), InMemoryVersions())
    for number in range(400):
        held = {PolicyName(f"projects/p{n}"): Hold("ValidationFailed", "no") for n in range(1000)}
        own.note(Seen(f"{number:040x}", None, "2026-01-01T00:00:00.000Z", {}, held))
    waiting: deque[Any] = own._waiting
    assert len(waiting) == 400, "the same policies, held all the time, weigh nothing more"
    assert len({id(each.seen.held) for each in waiting}) == 1


def _recorder(source: InMemorySource, store: InMemoryVersions) -> Recorder:
    metrics = RecorderMetrics(CollectorRegistry())
    return Recorder(source, store, keep=ALL, metrics=metrics, settings=LoopSettings())
