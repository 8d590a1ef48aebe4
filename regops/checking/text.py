"""A review for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from api.texts import dump
from reconciler.core.model import FileError
from regops.checking.findings import Flips, Operation, PolicyFinding, Replay, Review, Tests
from regops.commands.table import table


def as_text(review: Review) -> str:
    """Errors first, by file:line:column, then what changes, then a line that says it all."""
    parts = [
        *_lines(review),
        _table(review),
        *(_changes(review.path, each) for each in review.policies if each.rego or each.data or each.data_text),
        *([_replay(review.replay)] if review.replay else []),
        summary(review),
    ]
    return "\n\n".join(part for part in parts if part)


def summary(review: Review) -> str:
    """One line."""
    words = [f"{_number(len(review.changed), 'policy', 'policies')} of {review.known} changed", *_fates(review)]
    if review.tests is not None:
        words += _of_tests(review.tests)
    if review.uncovered:
        words.append(f"{len(review.uncovered)} covered by less than {review.min_coverage:g} %")
    if review.replay is not None:
        words.append(f"{review.replay.flips} of {_number(review.replay.inputs, 'input', 'inputs')} flip")
    return f"{'Passed' if review.passed else 'Failed'}: {', '.join(words)}"


def _fates(review: Review) -> Iterator[str]:
    """What would become of what changes, and of what the change breaks."""
    live = sum(1 for each in review.changed if each.operation is not Operation.DELETE and not each.held)
    gone = sum(1 for each in review.changed if each.operation is Operation.DELETE and not each.blocked)
    if live:
        yield "all would go live" if live == len(review.changed) else f"{live} would go live"
    if gone:
        yield f"{gone} would be deleted"
    if review.invalid:
        yield f"{len(review.invalid)} would be held"
    if review.blocked:
        stay = "stays live" if len(review.blocked) == 1 else "stay live"
        yield f"{len(review.blocked)} {stay} until a person confirms the deletion"


def _of_tests(tests: Tests) -> Iterator[str]:
    if tests.error:
        yield f"tests could not be run{' (so before)' if tests.error_before else ''}"
        return
    former = sum(1 for each in tests.failures if each.before)
    yield f"{tests.failed} of {_number(tests.total, 'test', 'tests')} failed"
    if broken := len(tests.failures) - tests.failed:
        yield f"{_number(broken, 'file', 'files')} of tests did not compile"
    if former:
        yield f"{former} of these so before"


def _number(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _lines(review: Review) -> Iterator[str]:
    errors = [line(review, error, "error") for each in review.invalid for error in each.errors]
    former = [each for each in review.policies if each.held and each.before]
    errors += [f"{line(review, error, 'warning')} (so before)" for each in former for error in each.errors]
    errors += [line(review, each, "warning") for each in review.warnings]
    errors += [f"{review.path}/{each}: ignored: not a file that regops publishes" for each in review.ignored]
    errors += _test_lines(review)
    if review.blocked:
        names = ", ".join(review.blocked)
        errors.append(
            f"{review.path}: warning: deletions would wait for a person, since {review.blocked_reason}: {names}"
        )
    if review.broken_elsewhere:
        errors.append(f"{review.path}: error: {elsewhere(review)}: {', '.join(review.broken_elsewhere)}")
    errors += [f"{review.path}: warning: {note}" for note in review.notes]
    if errors:
        yield "\n".join(errors)


def _test_lines(review: Review) -> Iterator[str]:
    tests = review.tests
    if tests is None:
        return
    if tests.error:
        yield f"{review.path}: {_kind(before=tests.error_before)}: tests could not be run: {tests.error}"
    for each in tests.failures:
        suffix = " (so before)" if each.before else ""
        yield f"{review.path}/{each.file}:{each.line}: {_kind(before=each.before)}: {each.said}{suffix}"


def elsewhere(review: Review) -> str:
    """Why tests fail whose policy nobody touched; a platform is what other policies may ask."""
    which = next((each.policy for each in review.changed if each.policy == "platform"), "this change")
    return f"{which} breaks tests of policies that are not changed"


def _kind(*, before: bool) -> str:
    return "warning" if before else "error"


def line(review: Review, error: FileError, kind: str) -> str:
    """file:line:column: kind: message."""
    place = ":".join(str(part) for part in (error.file, error.line, error.column) if part is not None)
    return f"{review.path}/{place}: {kind}: {error.message}"


def _table(review: Review) -> str:
    if not review.policies:
        return ""
    tests = review.tests
    rows = [
        [
            each.policy,
            each.operation if each.operation is not Operation.NONE else "unchanged",
            verdict(each),
            *test_cells(tests, each),
        ]
        for each in review.policies
    ]
    return table(["POLICY", "CHANGE", "VERDICT", "TESTS", "COVERAGE"], rows)


def verdict(each: PolicyFinding) -> str:
    """In a few words."""
    if each.held:
        return f"held: {each.reason}{' (so before)' if each.before else ''}"
    if each.blocked:
        return "deletion blocked"
    return "deleted" if each.operation is Operation.DELETE else "live"


def test_cells(tests: Tests | None, each: PolicyFinding) -> tuple[str, str]:
    """How many tests ran and what they cover; ``-`` where nobody knows."""
    if tests is None or tests.error or not each.tested:
        return "-", "-"
    percent = tests.coverage.get(each.policy)
    return str(tests.run.get(each.policy, 0)), "-" if percent is None else f"{percent:.0f} %"


def _changes(path: str, each: PolicyFinding) -> str:
    parts = [each.rego.rstrip("\n")] if each.rego else []
    if each.data:
        parts.append("\n".join([f"{path}/{each.policy}/data.json", *data_lines(each.data, "  ")]))
    if each.data_text:
        parts.append(each.data_text.rstrip("\n"))
    return "\n".join(parts)


def data_lines(changes: Iterable[Mapping[str, Any]], indent: str) -> Iterator[str]:
    """Changes of data, a value's further lines deeper than the mark of its first one."""
    for change in changes:
        yield textwrap.indent(change_line(change).replace("\n", "\n  "), indent)


def change_line(change: Mapping[str, Any]) -> str:
    """One change of data: path, old → new; numbers keep their digits."""
    old, new = (dump(change[side]).decode().strip() if side in change else None for side in ("from", "to"))
    path = change["path"] or "/"
    if old is None:
        return f"+ {path}: {new}"
    return f"- {path}: {old}" if new is None else f"~ {path}: {old} → {new}"


def _replay(found: Replay) -> str:
    lines = [f"Replay: {found.flips} of {_number(found.inputs, 'input', 'inputs')} flip"]
    flipping = [each for each in found.rules if each.flips]
    if flipping:
        rows = [[each.policy, each.rule, each.flips, each.inputs] for each in flipping]
        lines += ["", table(["POLICY", "RULE", "FLIP", "INPUTS"], rows)]
        lines += [text for each in flipping for text in _examples(each)]
    lines += [f"Note: {note}" for note in notes(found)]
    return "\n".join(lines)


def _examples(each: Flips) -> Iterator[str]:
    yield ""
    yield f"{each.policy} {each.rule}:"
    for example in each.examples:
        yield f"  {example.decision_id}: {shown(example.old)} → {shown(example.new)}"
        yield f"    input {example.input}"


def shown(value: str | None) -> str:
    """A decision."""
    return "undefined" if value is None else value


def notes(found: Replay) -> Iterator[str]:
    """What a reader must know of the numbers."""
    for why, count in sorted(found.skipped.items()):
        yield f"{count} not asked again: {why}"
    if found.unreadable_count:
        pieces = _number(found.unreadable_count, "piece is", "pieces are")
        yield f"{pieces} no decision: {'; '.join(found.unreadable[:3])}"
    if found.other_lines:
        yield f"{_number(found.other_lines, 'other line', 'other lines')} of OPA's log"
    if found.differed:
        yield (
            f"{found.differed} were recorded otherwise than the old revision decides them now: it was another commit, "
            "other data, or the time counts"
        )
    if found.nondeterministic:
        says = "used builtins whose answers change (time, random …): OPA cannot be given the old ones"
        yield f"{found.nondeterministic} {says}"
    elif found.changing:
        calls = "; ".join(f"{name} calls {', '.join(each)}" for name, each in found.changing.items())
        yield (
            f"{calls}: asked anew, so that a decision may differ by itself; which ones used it the log tells only "
            "where OPA's configuration has `nd_builtin_cache: true`"
        )
