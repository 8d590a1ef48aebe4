"""Verdicts that outlive a process, in a real SQLite file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from reconciler.adapters.verdict_file import VerdictFile
from reconciler.core.errors import TransientError
from reconciler.core.model import BlobIds, FileError, Verdict, project_policy
from reconciler.core.verdict_ports import VerdictKey

PLATFORM = BlobIds("f" * 40)
BAD = Verdict((FileError("projects/a/rego.rego", "is wrong", 3, 7), FileError("projects/a/data.json", "too")))
OLD = Verdict((), (FileError("projects/a/rego.rego", "is Rego v0"),), 0)

Opening = Callable[..., VerdictFile]


def key(name: str, platform: BlobIds | None = PLATFORM, rego: str = "a" * 40) -> VerdictKey:
    return VerdictKey(project_policy(name), BlobIds(rego, "d" * 40), platform)


@pytest.fixture
async def opening(tmp_path: Path) -> AsyncIterator[Opening]:
    """Opens the same file again and again, as processes one after the other do."""
    async with AsyncExitStack() as stack:

        def opened(name: str = "opa 1", **options: object) -> VerdictFile:
            async def fingerprint() -> str:
                return name

            file = VerdictFile(tmp_path / "state" / "verdicts.sqlite", fingerprint, **options)  # type: ignore[arg-type]
            stack.push_async_callback(file.aclose)
            return file

        yield opened


async def test_verdicts_are_found_again_by_the_next_process(opening: Opening) -> None:
    said = {key("a"): BAD, key("b"): Verdict(), key("c"): OLD, key("d", None): Verdict()}
    first = opening()
    await first.keep(said)
    await first.aclose()
    assert await opening().find([*said, key("e")]) == said


async def test_another_version_platform_or_policy_has_no_verdict(opening: Opening) -> None:
    file = opening()
    await file.keep({key("a"): Verdict()})
    others = [key("a", None), key("a", BlobIds("e" * 40)), key("a", rego="b" * 40), key("b")]
    assert await file.find(others) == {}


async def test_another_opa_or_other_settings_have_no_verdict(opening: Opening) -> None:
    first = opening("opa 1")
    await first.keep({key("a"): Verdict()})
    await first.aclose()
    assert await opening("opa 2").find([key("a")]) == {}
    assert await opening("opa 1").find([key("a")]) == {key("a"): Verdict()}


async def test_thousands_are_found_in_one_call(opening: Opening) -> None:
    said = {key(f"p{number}"): Verdict() for number in range(3000)}
    file = opening()
    await file.keep(said)
    assert await file.find(list(said)) == said


async def test_what_was_not_asked_for_in_a_month_is_dropped(opening: Opening) -> None:
    today = 1000
    first = opening(today=lambda: today)
    await first.keep({key("a"): Verdict(), key("b"): Verdict()})
    await first.aclose()
    second = opening(today=lambda: today + 20)
    await second.find([key("a")])
    await second.aclose()
    third = opening(today=lambda: today + 40)
    assert await third.find([key("a"), key("b")]) == {key("a"): Verdict()}


async def test_of_too_many_those_used_last_stay(opening: Opening) -> None:
    for day in range(4):
        file = opening(today=lambda day=day: 1000 + day)
        await file.keep({key(f"p{day}"): Verdict()})
        await file.aclose()
    kept = await opening(today=lambda: 1004, most=2).find([key(f"p{day}") for day in range(4)])
    assert set(kept) == {key("p2"), key("p3")}


async def test_a_damaged_file_is_made_anew(opening: Opening, tmp_path: Path) -> None:
    first = opening()
    await first.keep({key("a"): Verdict()})
    await first.aclose()
    (tmp_path / "state" / "verdicts.sqlite").write_bytes(b"no database at all" * 1000)
    second = opening()
    assert await second.find([key("a")]) == {}
    await second.keep({key("a"): BAD})
    await second.aclose()
    assert await opening().find([key("a")]) == {key("a"): BAD}


async def test_a_file_that_cannot_be_made_is_done_without(opening: Opening, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder must be")
    file = opening()
    await file.keep({key("a"): Verdict()})
    assert await file.find([key("a")]) == {}


async def test_while_opa_does_not_tell_its_version_nothing_is_known(tmp_path: Path) -> None:
    async def fingerprint() -> str:
        raise TransientError("away", reason="CompilerUnavailable")

    file = VerdictFile(tmp_path / "verdicts.sqlite", fingerprint)
    await file.keep({key("a"): Verdict()})
    assert await file.find([key("a")]) == {}
    await file.aclose()


async def test_others_on_the_machine_cannot_write_verdicts(opening: Opening, tmp_path: Path) -> None:
    await opening().keep({key("a"): Verdict()})
    assert (tmp_path / "state" / "verdicts.sqlite").stat().st_mode & 0o077 == 0


async def test_an_opa_that_is_exchanged_while_the_process_runs_is_another_one(tmp_path: Path) -> None:
    version = "opa 1"

    async def fingerprint() -> str:
        return version

    file = VerdictFile(tmp_path / "verdicts.sqlite", fingerprint)
    await file.keep({key("a"): Verdict()})
    version = "opa 2"
    assert await file.find([key("a")]) == {}
    await file.aclose()


async def test_a_process_that_lives_long_prunes_once_a_day(tmp_path: Path) -> None:
    today = 1000

    async def fingerprint() -> str:
        return "opa"

    file = VerdictFile(tmp_path / "verdicts.sqlite", fingerprint, today=lambda: today)
    await file.keep({key("a"): Verdict()})
    today += 40
    await file.keep({key("b"): Verdict()})
    assert await file.find([key("a"), key("b")]) == {key("b"): Verdict()}
    await file.aclose()
