"""Is a concurrent history of one policy linearizable? Wing and Gong's search, with Lowe's memory of seen states.

The policy is a register that is written by compare-and-set: a write names the version that it expects and the one that
it makes; every version is made once. A write that was refused saw *another* version than it expected; a write whose
end is not known may have happened at any time after it began, or never.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Version = str | None
"""An entity-tag; ``None`` before the policy exists."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call, from ``began`` to ``ended`` (any one monotonic clock; never ended: infinity).

    ``kind`` ``write``: took ``expected`` to ``made``. ``refused``: found another version than ``expected``. ``read``:
    saw ``made``. ``unknown``: a write that may have happened.
    """

    kind: Literal["write", "refused", "read", "unknown"]
    began: float
    ended: float
    expected: Version = None
    made: Version = None

    def applied(self, state: Version) -> tuple[bool, Version]:
        """Whether it could happen in ``state``, and the state after it."""
        if self.kind == "read":
            return state == self.made, state
        if self.kind == "refused":
            return state != self.expected, state
        return state == self.expected, self.made


def is_linearizable(history: Sequence[Operation], initial: Version) -> bool:
    """Whether some order of the operations that keeps the order of non-overlapping ones explains all answers."""
    operations = sorted(history, key=lambda operation: operation.began)
    everything = (1 << len(operations)) - 1
    optional = sum(1 << i for i, operation in enumerate(operations) if operation.kind == "unknown")
    stack: list[tuple[int, Version]] = [(0, initial)]
    seen = set(stack)
    while stack:
        done, state = stack.pop()
        if done | optional == everything:
            return True
        for following in _steps(operations, done, state, optional):
            if following not in seen:
                seen.add(following)
                stack.append(following)
    return False


def _steps(operations: Sequence[Operation], done: int, state: Version, optional: int) -> list[tuple[int, Version]]:
    """Where the search goes on. What can happen now and changes nothing may as well happen now: no other order
    explains more, so there is nothing to choose."""
    steps = []
    for i in _next(operations, done, optional):
        possible, after = operations[i].applied(state)
        if possible and operations[i].kind in {"read", "refused"}:
            return [(done | 1 << i, state)]
        if possible:
            steps.append((done | 1 << i, after))
    return steps


def _next(operations: Sequence[Operation], done: int, optional: int) -> list[int]:
    """Those that may come next: they began before any other that is still to come has ended."""
    left = [i for i in range(len(operations)) if not done >> i & 1]
    first_end = min((operations[i].ended for i in left if not optional >> i & 1), default=math.inf)
    return [i for i in left if operations[i].began <= first_end]
