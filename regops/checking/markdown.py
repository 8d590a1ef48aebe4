"""A review as a comment on a pull request: Markdown that no name, message or text can break out of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from regops.checking.findings import Flips, Operation, PolicyFinding, Review
from regops.checking.text import data_lines, elsewhere, line, notes, shown, summary, test_cells, verdict

LONGEST: Final = 65_000
"""Characters; GitHub takes 65,536 in a comment."""
MARK: Final = "<!-- regops check -->"
"""The first line: by it a workflow finds its former comment."""
_ROWS: Final = 50
_TICKS: Final = re.compile(r"`+")
_CALLS: Final = re.compile(r"([@#!~$%&]|\bGH-)(?=\w)")
"""What begins a mention or a reference on GitHub, GitLab or Gitea."""
_CUT: Final = "\n\n_The rest is left out: the whole is in the log of this check._\n"


def as_markdown(review: Review) -> str:
    """A heading, findings, a table, what decisions flip, and the differences, folded. Cut where it is too long."""
    text = MARK
    for part in _parts(review):
        if len(text) + len(part) + len(_CUT) > LONGEST:
            return text + _CUT
        text += part
    return text + "\n"


def _parts(review: Review) -> Iterator[str]:
    yield f"\n### regops check: {'passed' if review.passed else 'failed'}\n\n{_plain(summary(review))}\n"
    found = list(_findings(review))
    if found:
        yield "\n"
        yield from (f"- {each}\n" for each in found[:_ROWS])
        if len(found) > _ROWS:
            yield f"- … and {len(found) - _ROWS} more\n"
    if review.policies:
        yield "\n| Policy | Change | Verdict | Tests | Coverage |\n|---|---|---|---:|---:|\n"
        yield from (_row(review, each) for each in review.policies[:_ROWS])
        if len(review.policies) > _ROWS:
            yield f"\n… and {len(review.policies) - _ROWS} more\n"
    if review.replay is not None:
        yield from _replay(review)
    for each in review.policies:
        text = _difference(review.path, each)
        if text:
            title = f"<code>{_html(each.policy)}</code>"
            yield f"\n<details><summary>{title}</summary>\n\n{fenced(text, 'diff')}\n</details>\n"


def _findings(review: Review) -> Iterator[str]:
    for finding in review.policies:
        mark = _mark(before=finding.before)
        yield from (f"{mark} {_code_line(line(review, error, ''))}" for error in finding.errors)
    if review.tests is not None:
        if review.tests.error:
            yield f"{_mark(before=review.tests.error_before)} tests could not be run: {_plain(review.tests.error)}"
        for each in review.tests.failures:
            place = f"{review.path}/{each.file}:{each.line}"
            former = " (so before)" if each.before else ""
            yield f"{_mark(before=each.before)} {code(place)} {_plain(each.said)}{former}"
    for name in review.uncovered:
        yield f":x: {code(name)} is covered by less than {review.min_coverage:g} %"
    if review.broken_elsewhere:
        yield f":x: {_plain(elsewhere(review))}: {', '.join(code(name) for name in review.broken_elsewhere)}"
    yield from (f":warning: {_code_line(line(review, each, ''))}" for each in review.warnings)
    if review.blocked:
        names = ", ".join(code(name) for name in review.blocked)
        yield f":warning: deletions would wait for a person, since {_plain(review.blocked_reason)}: {names}"
    yield from (f":warning: {_plain(note)}" for note in review.notes)


def _mark(*, before: bool) -> str:
    return ":warning:" if before else ":x:"


def _code_line(text: str) -> str:
    place, _, message = text.partition(": : ")
    return f"{code(place)} {_plain(message)}"


def _row(review: Review, each: PolicyFinding) -> str:
    ran, covered = test_cells(review.tests, each)
    change = "unchanged" if each.operation is Operation.NONE else str(each.operation)
    return f"| {code(each.policy)} | {change} | {_plain(verdict(each))} | {ran} | {covered} |\n"


def _replay(review: Review) -> Iterator[str]:
    found = review.replay
    if found is None:
        return
    yield f"\n**Replay**: {found.flips} of {found.inputs} recorded inputs flip.\n"
    flipping = [each for each in found.rules if each.flips]
    if flipping:
        yield "\n| Policy | Rule | Flip | Inputs |\n|---|---|---:|---:|\n"
        yield from (f"| {code(e.policy)} | {code(e.rule)} | {e.flips} | {e.inputs} |\n" for e in flipping[:_ROWS])
        yield from (_examples(each) for each in flipping[:_ROWS])
    noted = [f"- {_plain(note)}\n" for note in notes(found)]
    if noted:
        yield "\n" + "".join(noted)


def _examples(each: Flips) -> str:
    lines = [
        f"{example.decision_id}: {shown(example.old)} → {shown(example.new)}\n  input {example.input}"
        for example in each.examples
    ]
    title = f"<code>{_html(each.policy)} {_html(each.rule)}</code>: examples"
    return f"\n<details><summary>{title}</summary>\n\n{fenced(chr(10).join(lines))}\n</details>\n"


def _difference(path: str, each: PolicyFinding) -> str:
    parts = [each.rego.rstrip("\n")] if each.rego else []
    if each.data:
        parts.append("\n".join([f"{path}/{each.policy}/data.json", *data_lines(each.data, "")]))
    if each.data_text:
        parts.append(each.data_text.rstrip("\n"))
    return "\n".join(parts)


def fenced(text: str, language: str = "") -> str:
    """A code block that the text cannot end."""
    longest = max((len(ticks) for ticks in _TICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}\n"


def code(text: str) -> str:
    """A code span that the text cannot end, also in a table."""
    flat = " ".join(text.split()).replace("|", "\\|")
    longest = max((len(ticks) for ticks in _TICKS.findall(flat)), default=0)
    ticks = "`" * (longest + 1)
    space = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{ticks}{space}{flat}{space}{ticks}" if flat else ""


def _plain(text: str) -> str:
    """A sentence in which nothing is markup but `backquotes`, and nothing calls a person, an issue or a change.

    A backslash does not keep `@name` or `#12` from that: they are looked for in what Markdown has become. A comment
    between the two parts is no text, and parts them.
    """
    flat = re.sub(r"([\\*_{}\[\]<>#|~!])", r"\\\1", " ".join(text.split()))
    return _CALLS.sub(r"\1<!-- -->", flat)


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
