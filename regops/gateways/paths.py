"""Which OPA a request to a gateway belongs to. Pure.

Only what OPA itself would read as one project's path is passed on, with the path exactly as it came: a path that a
server behind the gateway may read otherwise (``..``, an empty segment, a slash in percent-encoding before one of them)
is refused, so that nobody asks one project in the name of another.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from reconciler.core.model import is_project_name
from reconciler.core.shards import shard_of

METHODS: Final = ("GET", "POST")
"""Those of OPA's Data API that only ask."""
PLATFORM_PATH: Final = "/v1/data/platform"
PROJECTS_PATH: Final = "/v1/data/projects"

_ESCAPES = re.compile(r"%(?![0-9A-Fa-f]{2})")
_AMBIGUOUS = re.compile(rb"//|/\.\.?(?:/|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a gateway answers by itself, in the form of OPA's own errors."""

    status: int
    code: str
    message: str

    def body(self) -> str:
        """As JSON."""
        return json.dumps({"code": self.code, "message": self.message})


METHOD: Final = Refusal(405, "invalid_operation", "only GET and POST: this gateway answers questions")
AMBIGUOUS: Final = Refusal(400, "invalid_parameter", "the path has empty or dotted segments, or is no path")
NAME: Final = Refusal(400, "invalid_parameter", "no project has such a name")
NOWHERE: Final = Refusal(404, "resource_not_found", f"ask {PROJECTS_PATH}/<project>/... or {PLATFORM_PATH}/...")


def destination(method: str, raw_path: str, count: int) -> int | Refusal | None:
    """The shard, 1 to ``count``, that answers ``raw_path`` (as it stands in the request, without the query); ``None``
    where each one can."""
    if method not in METHODS:
        return METHOD
    if _ESCAPES.search(raw_path) or _AMBIGUOUS.search(unquote_to_bytes(raw_path)):
        return AMBIGUOUS
    if f"{raw_path}/".startswith(f"{PLATFORM_PATH}/"):
        return None
    before, _, rest = raw_path.partition(f"{PROJECTS_PATH}/")
    if before or not rest:
        return NOWHERE
    project = unquote_to_bytes(rest.partition("/")[0]).decode("latin-1")
    return shard_of(project, count) if is_project_name(project) else NAME
