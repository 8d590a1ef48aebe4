"""Versions and pages as documents. Pure: no connection is needed to read or write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from bson.binary import Binary

from reconciler.core.ledger import Entry, Page
from reconciler.core.model import BlobIds, CommitInfo, Content, PolicyName, project_of
from reconciler.core.versions import State, StoredVersion, Version

TEXTS_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of both files above which they are left out: a document has 16 MiB at most (MongoDB manual, "Limits")."""
PARSED_LIMIT: Final = 1024 * 1024
"""Bytes of ``data.json`` above which its parsed form is left out: BSON may need more than six times as many."""
MESSAGE_LIMIT: Final = 4096
"""Characters of an error's text that are kept."""
_DEPTH: Final = 64
_INT64: Final = range(-(2**63), 2**63)

LIGHT: Final = {"rego": False, "data": False, "data_text": False}
"""Projection of everything but the texts."""


def version_id(policy: PolicyName, number: int) -> str:
    """The ``_id`` of a version."""
    return f"{policy}@{number}"


def to_document(generation: str, stored: StoredVersion) -> dict[str, Any]:
    """One version. Exact texts beside ``data`` as MongoDB holds it; fields without a value are left out."""
    version, content = stored.version, stored.content
    info, project = version.info, project_of(version.policy)
    blobs = version.blobs
    document: dict[str, Any] = {
        "_id": version_id(version.policy, version.version),
        "generation": generation,
        "policy": version.policy,
        "scope": "platform" if project is None else "project",
        "project": project,
        "version": version.version,
        "position": version.position,
        "etag": version.etag,
        "blobs": None if blobs is None else {"rego": blobs.rego, "data": blobs.data},
        "deleted": version.deleted,
        "commit": info.commit,
        "ts": datetime.fromisoformat(info.committed_at) if info.committed_at else None,
        "actor": info.author,
        "subject": info.subject,
        "pull_request": version.pull_request,
        **state_fields(version),
    }
    if content is not None and content.size <= TEXTS_LIMIT:
        document["rego"] = _text(content.rego)
        if content.data is not None:
            document["data_text"] = _text(content.data)
            document["data"] = parsed(content.data)
    return {name: value for name, value in document.items() if value is not None}


def state_fields(version: Version) -> dict[str, Any]:
    """The fields that say what became of a version."""
    return {
        "state": str(version.state),
        "reason": version.reason,
        "message": version.message[:MESSAGE_LIMIT].encode(errors="replace").decode(),
        "inferred": version.inferred,
        "applied_at": list(version.applied_at),
    }


def to_version(document: Mapping[str, Any]) -> Version:
    """The version in a document, of which the texts may be missing."""
    blobs, at = document.get("blobs"), document.get("ts")
    return Version(
        policy=PolicyName(document["policy"]),
        version=document["version"],
        position=document["position"],
        info=CommitInfo(
            document["commit"],
            document["actor"],
            f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}Z" if at else "",
            document["subject"],
        ),
        blobs=None if blobs is None else BlobIds(blobs["rego"], blobs.get("data")),
        state=State(document["state"]),
        deleted=document["deleted"],
        reason=document["reason"],
        message=document["message"],
        inferred=document["inferred"],
        applied_at=tuple(document["applied_at"]),
    )


def to_stored(document: Mapping[str, Any]) -> StoredVersion:
    """The version in a document, with its exact bytes."""
    content = None
    if "rego" in document:
        data = document.get("data_text")
        content = Content(_bytes(document["rego"]), None if data is None else _bytes(data))
    return StoredVersion(to_version(document), content)


def page_document(generation: str, page: Page) -> dict[str, Any]:
    """One page of the ledger."""
    return {
        "_id": f"{generation}/{page.first}",
        "generation": generation,
        "first": page.first,
        "entries": [{"commit": entry.commit, "numbers": dict(entry.numbers)} for entry in page.entries],
    }


def to_page(document: Mapping[str, Any]) -> Page:
    """The page in a document."""
    entries = [
        Entry(entry["commit"], {PolicyName(name): number for name, number in entry["numbers"].items()})
        for entry in document["entries"]
    ]
    return Page(document["first"], tuple(entries))


def parsed(data: bytes) -> Any:
    """``data.json`` in the form that people query; ``None`` where MongoDB or a driver would change or refuse it: names
    with a dot, a ``$`` in front or a NUL, repeated names, numbers beyond 64 bits, what is no JSON."""
    if len(data) > PARSED_LIMIT:
        return None
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if _holds(value) else None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs) or any(name.startswith("$") or "." in name or "\0" in name for name in found):
        raise ValueError("a name that MongoDB would not keep")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _holds(value: Any) -> bool:
    """Whether BSON has every number and text in here. Level by level, so that no depth ends it."""
    level = [value]
    for _ in range(_DEPTH + 1):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below += [*each.keys(), *each.values()]
            elif isinstance(each, list):
                below += each
            elif isinstance(each, str):
                if not _encodable(each):
                    return False
            elif isinstance(each, int) and each not in _INT64:
                return False
        if not below:
            return True
        level = below
    return False


def _encodable(text: str) -> bool:
    """Whether UTF-8 has it: JSON may name half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(content: bytes) -> str | Binary:
    """Text where it is text, for people; else the bytes."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return Binary(content)


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)
