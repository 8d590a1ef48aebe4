"""If-Match and If-None-Match against the table of the contract and against a model that reads headers by itself."""

from __future__ import annotations

from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from api.preconditions import Preconditions, not_modified
from api.problems import ProblemError

NOW = '"aaaa"'
OLD = '"bbbb"'


def said(*fields: tuple[str, str]) -> Preconditions:
    return Preconditions.of(CIMultiDict(fields))


def put(conditions: Preconditions, current: str | None) -> tuple[int, str] | None:
    return outcome(lambda: conditions.check_put(current))


def change(conditions: Preconditions, current: str | None) -> tuple[int, str] | None:
    return outcome(lambda: conditions.check_change(current))


def outcome(check: object) -> tuple[int, str] | None:
    assert callable(check)
    try:
        check()
    except ProblemError as problem:
        return problem.status, problem.headers.get("ETag", "")
    return None


@pytest.mark.parametrize(
    ("fields", "on_existing", "on_missing"),
    [
        ((), (428, NOW), None),
        ((("If-Match", NOW),), None, (409, "")),
        ((("If-Match", OLD),), (409, NOW), (409, "")),
        ((("If-Match", "*"),), None, (409, "")),
        ((("If-Match", " *\t"),), None, (409, "")),
        ((("If-Match", f"W/{NOW}"),), (409, NOW), (409, "")),
        ((("If-Match", f"{OLD}, {NOW}"),), None, (409, "")),
        ((("If-Match", f", ,{OLD},,{NOW},"),), None, (409, "")),
        ((("If-Match", OLD), ("if-match", NOW)), None, (409, "")),
        ((("If-Match", f"W/{NOW}, {NOW}"),), None, (409, "")),
        ((("If-Match", '"a,b", "c d"'),), (409, NOW), (409, "")),
        ((("If-Match", f'"a,b", {NOW}'),), None, (409, "")),
        ((("If-Match", f'"é", {NOW}'),), None, (409, "")),
        ((("If-Match", ""),), (409, NOW), (409, "")),
        ((("If-Match", ","),), (409, NOW), (409, "")),
        ((("If-Match", "aaaa"),), (409, NOW), (409, "")),
        ((("If-Match", f"w/{NOW}, {NOW}"),), (409, NOW), (409, "")),
        ((("If-Match", f"*, {NOW}"),), (409, NOW), (409, "")),
        ((("If-Match", "*"), ("If-Match", "*")), (409, NOW), (409, "")),
        ((("If-Match", f"{NOW} {NOW}"),), (409, NOW), (409, "")),
        ((("If-Match", f"{NOW}; x=1"),), (409, NOW), (409, "")),
        ((("If-Match", '"aaaa'),), (409, NOW), (409, "")),
        ((("If-None-Match", "*"),), (409, NOW), None),
        ((("If-None-Match", NOW),), (409, NOW), None),
        ((("If-None-Match", f"W/{NOW}"),), (409, NOW), None),
        ((("If-None-Match", OLD),), (428, NOW), None),
        ((("If-None-Match", "garbage"),), (409, NOW), (409, "")),
        ((("If-None-Match", ""),), (409, NOW), (409, "")),
        ((("If-None-Match", OLD), ("If-Match", NOW)), None, (409, "")),
        ((("If-None-Match", "*"), ("If-Match", NOW)), (409, NOW), (409, "")),
    ],
)
def test_a_put_is_decided_as_the_table_says(
    fields: tuple[tuple[str, str], ...], on_existing: tuple[int, str] | None, on_missing: tuple[int, str] | None
) -> None:
    conditions = said(*fields)
    assert put(conditions, NOW) == on_existing
    assert put(conditions, None) == on_missing
    assert change(conditions, NOW) == on_existing
    assert change(conditions, None) == (404, "")


def test_each_refusal_has_its_code_and_says_what_to_do() -> None:
    cases = {
        "precondition_required": (said(), "give If-Match"),
        "conflict": (said(("If-Match", OLD)), "?ref=head"),
    }
    for code, (conditions, words) in cases.items():
        with pytest.raises(ProblemError) as caught:
            conditions.check_put(NOW)
        assert caught.value.code == code
        assert words in caught.value.message
    with pytest.raises(ProblemError, match="no such policy") as missing:
        said(("If-Match", NOW)).check_change(None)
    assert missing.value.code == "not_found"
    with pytest.raises(ProblemError, match="leave out W/"):
        said(("If-Match", f"W/{NOW}")).check_put(NOW)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((), False),
        ((("If-None-Match", NOW),), True),
        ((("If-None-Match", f"W/{NOW}"),), True),
        ((("If-None-Match", "*"),), True),
        ((("If-None-Match", OLD), ("If-None-Match", f"W/{OLD}, {NOW}")), True),
        ((("If-None-Match", OLD),), False),
        ((("If-None-Match", "aaaa"),), False),
        ((("If-None-Match", f"{NOW} and more"),), False),
        ((("If-None-Match", ""),), False),
        ((("If-Match", NOW),), False),
    ],
)
def test_a_read_is_not_modified_only_when_the_caller_has_this_version(
    fields: tuple[tuple[str, str], ...], *, expected: bool
) -> None:
    assert not_modified(CIMultiDict(fields), NOW) is expected


@pytest.mark.parametrize("filler", [" " * 20_000, ", " * 10_000, '"' * 20_000, 'W/"x",' * 3_000])
@pytest.mark.parametrize("end", ["", "y", '"', "W/"])
def test_a_header_as_long_as_the_server_takes_costs_next_to_nothing(filler: str, end: str) -> None:
    """The pattern of one list element tried every way to split a run of blanks: 20,000 of them took 1.6 s of the event
    loop."""
    started = perf_counter()
    put(said(("If-Match", f",{filler}{end}")), NOW)
    assert perf_counter() - started < 0.3


# --- a model ---------------------------------------------------------------------------------------------------------

tags = st.sampled_from([NOW, OLD, '""', '"a,b"', '"W/"', '"*"', '"\\"'])
elements = st.one_of(tags, tags.map("W/{}".format), st.just(""))
blanks = st.text(alphabet=" \t", max_size=2)
padded = st.tuples(blanks, elements, blanks).map("".join)
well_formed = st.lists(padded, min_size=1, max_size=5).map(",".join)
chaos = st.text(alphabet='Ww/"*, \tab\\', max_size=14)
fields = st.lists(st.one_of(well_formed, chaos, st.sampled_from(["*", NOW, OLD])), max_size=3)


def model(lines: list[str]) -> set[tuple[bool, str]] | str | None:
    """{(weak, tag)}, or ``any``, ``bad``, ``None`` for an absent field; one character after the other."""
    if not lines:
        return None
    rest = ", ".join(lines)
    if rest.strip(" \t") == "*":
        return "any"
    found: set[tuple[bool, str]] = set()
    need_comma = False
    while rest:
        head = rest[0]
        if head in " \t":
            rest = rest[1:]
        elif head == ",":
            need_comma, rest = False, rest[1:]
        else:
            weak = rest.startswith("W/")
            rest = rest[2:] if weak else rest
            opaque, quote, after = rest[1:].partition('"')
            if need_comma or not rest.startswith('"') or not quote or " " in opaque or "\t" in opaque:
                return "bad"
            found.add((weak, f'"{opaque}"'))
            need_comma, rest = True, after
    return found or "bad"


def expected_of_put(match: list[str], none_match: list[str], current: str | None) -> int | None:
    """Section "Preconditions" of the contract, read aloud."""
    wanted, unwanted = model(match), model(none_match)
    if unwanted == "bad":
        return 409
    named = {tag for _, tag in unwanted} if isinstance(unwanted, set) else set()
    if current is not None and (unwanted == "any" or current in named):
        return 409
    if wanted is None:
        return None if current is None else 428
    if current is None or wanted == "bad":
        return 409
    return None if wanted == "any" or (False, current) in wanted else 409


@given(match=fields, none_match=fields, exists=st.booleans())
def test_every_header_is_decided_as_the_model_does(match: list[str], none_match: list[str], *, exists: bool) -> None:
    conditions = said(*(("If-Match", line) for line in match), *(("If-None-Match", line) for line in none_match))
    current = NOW if exists else None
    expected = expected_of_put(match, none_match, current)
    found = put(conditions, current)
    assert (found and found[0]) == expected
    if found:
        assert found[1] == (NOW if exists else "")
    assert change(conditions, current) == (found if exists else (404, ""))


@given(lines=fields)
def test_every_read_is_decided_as_the_model_does(lines: list[str]) -> None:
    read = model(lines)
    expected = read == "any" or (isinstance(read, set) and any(tag == NOW for _, tag in read))
    assert not_modified(CIMultiDict(("If-None-Match", line) for line in lines), NOW) is expected
