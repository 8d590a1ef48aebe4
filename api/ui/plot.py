"""The propagation plot: of each pass how long it took from the trigger until every OPA had proven it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

WIDTH: Final = 760
HEIGHT: Final = 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 34
GOAL: Final = 0.5
"""Seconds within which a change is to be enforced."""
MOST: Final = 60
_STEPS: Final = (0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 21_600, 86_400)


@dataclass(frozen=True, slots=True)
class Point:
    """One pass: where it lies, and what it says. ``enforced`` is ``None`` while not every OPA has proven it."""

    x: float
    y_applied: float
    y: float
    commit: str
    at: str
    applied: float
    enforced: float | None


@dataclass(frozen=True, slots=True)
class Plot:
    """Points oldest first; ``ticks``: y and label of each line of the scale; ``goal``: y of the goal."""

    points: tuple[Point, ...]
    ticks: tuple[tuple[float, str], ...]
    goal: float
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM


def plot_of(passes: Iterable[Mapping[str, Any]]) -> Plot:
    """From entries of `GET /history`, newest first: those that applied another commit, the newest `MOST`."""
    moved = [each for each in passes if each["outcome"] == "applied" and each["commit"] != each["before"]]
    timed = [each for each in moved if each["seconds"]["total"] is not None][:MOST][::-1]
    most = max([GOAL * 1.2, *(_whole(each) or each["seconds"]["total"] for each in timed)])
    step = next((size for size in _STEPS if most / size <= 5), _STEPS[-1])  # noqa: PLR2004 lines that can be told apart
    top = step * (int(most / step) + 1)

    def y(value: float) -> float:
        return round(HEIGHT - _BOTTOM - value / top * (HEIGHT - _BOTTOM - _TOP), 1)

    def x(index: int) -> float:
        room = WIDTH - _LEFT - _RIGHT
        return round(_LEFT + room * (index + 0.5) / max(1, len(timed)), 1)

    points = tuple(
        Point(
            x=x(index),
            y_applied=y(each["seconds"]["total"]),
            y=y(_whole(each) or each["seconds"]["total"]),
            commit=each["commit"],
            at=each["seen_at"],
            applied=each["seconds"]["total"],
            enforced=_whole(each),
        )
        for index, each in enumerate(timed)
    )
    ticks = tuple((y(step * i), _label(step * i)) for i in range(int(top / step) + 1))
    return Plot(points, ticks, y(GOAL))


def _whole(each: Mapping[str, Any]) -> float | None:
    """From the trigger until every OPA had proven it."""
    enforced = each["seconds"]["enforced"]
    return None if enforced is None else float(each["seconds"]["total"] + enforced)


def _label(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:g} s"
