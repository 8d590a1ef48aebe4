"""A review as workflow commands of GitHub Actions, which Gitea and Forgejo understand too: annotations on lines.

Escaping is that of the runner (actions/toolkit, ``command.ts``): %, CR, LF in messages; besides these : and , in
properties.
"""

from __future__ import annotations

from collections.abc import Iterator

from regops.checking.findings import Review
from regops.checking.text import elsewhere, summary


def as_annotations(review: Review) -> str:
    """One command a line; the runner turns them into annotations."""
    return "\n".join([*_commands(review), summary(review)])


def _commands(review: Review) -> Iterator[str]:
    path = review.path
    for each in review.policies:
        kind = "warning" if each.before else "error"
        for error in each.errors:
            title = f"{each.policy} would be held{' (so before)' if each.before else ''}"
            yield _command(kind, f"{path}/{error.file}", error.line, error.column, title, error.message)
    for warning in review.warnings:
        yield _command("warning", f"{path}/{warning.file}", warning.line, warning.column, "regops", warning.message)
    for name in review.ignored:
        yield _command("notice", f"{path}/{name}", None, None, "regops", "not a file that regops publishes")
    yield from _of_tests(review)
    if review.blocked:
        message = f"deletions would wait for a person, since {review.blocked_reason}: {', '.join(review.blocked)}"
        yield _command("warning", path, None, None, "Deletions", message)
    yield from (_command("warning", path, None, None, "regops", note) for note in review.notes)
    if review.replay is not None and review.replay.flips:
        flipping = [each for each in review.replay.rules if each.flips]
        rules = ", ".join(f"{each.policy} {each.rule} ({each.flips} of {each.inputs})" for each in flipping[:5])
        message = f"{review.replay.flips} of {review.replay.inputs} recorded decisions flip: {rules}"
        yield _command("notice", path, None, None, "Replay", message)


def _of_tests(review: Review) -> Iterator[str]:
    path, tests = review.path, review.tests
    if tests is not None and tests.error:
        kind = "warning" if tests.error_before else "error"
        yield _command(kind, path, None, None, "Tests could not be run", tests.error)
    for each in tests.failures if tests is not None else ():
        kind, title = ("warning", " (so before)") if each.before else ("error", "")
        yield _command(kind, f"{path}/{each.file}", each.line, None, f"{each.name or 'Tests'}{title}", each.said)
    if review.broken_elsewhere:
        names = ", ".join(review.broken_elsewhere)
        yield _command("error", path, None, None, "Tests elsewhere", f"{elsewhere(review)}: {names}")
    for name in review.uncovered:
        message = f"its tests cover less than {review.min_coverage:g} %"
        yield _command("error", f"{path}/{name}/rego.rego", None, None, f"{name} is not covered", message)


def _command(kind: str, file: str, line: int | None, column: int | None, title: str, message: str) -> str:
    given = {"file": file, "line": line, "col": column, "title": title}
    properties = ",".join(f"{name}={_property(str(value))}" for name, value in given.items() if value is not None)
    return f"::{kind} {properties}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
