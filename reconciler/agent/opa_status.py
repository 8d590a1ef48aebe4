"""What an OPA's status post says (OPA's Status API), reduced to what the agent needs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_MESSAGE_LIMIT: Final = 2048
_DOWNLOAD_FAILED: Final = "request failed:"
"""How OPA begins the message when it had no answer at all (``download.go``); other download errors carry
``http_code``."""


@dataclass(frozen=True, slots=True)
class OpaStatus:
    """``opa`` is ``labels.id``, new with each start of the process; ``refusal`` why it did not activate a bundle that
    it had downloaded, ``None`` when it refuses none."""

    opa: str | None
    version: str | None = None
    active_revision: str | None = None
    refusal: str | None = None


def parse_status(document: object, bundle: str) -> OpaStatus:
    """The status in a decoded JSON body, as far as it concerns ``bundle``. `ValueError` when it is none."""
    if not isinstance(document, dict):
        raise ValueError("a status is a JSON object")  # noqa: TRY004 one error class for callers
    labels = _object(document.get("labels"))
    status = _object(_object(document.get("bundles")).get(bundle))
    return OpaStatus(
        opa=_text(labels.get("id")),
        version=_text(labels.get("version")),
        active_revision=_text(status.get("active_revision")),
        refusal=_refusal(status),
    )


def _refusal(status: Mapping[str, Any]) -> str | None:
    message = _text(status.get("message")) or ""
    if not status.get("code") or status.get("http_code") or message.startswith(_DOWNLOAD_FAILED):
        return None
    errors = status.get("errors")
    details = [_error(_object(error)) for error in errors] if isinstance(errors, list) else []
    return "; ".join(details or [message])[:_MESSAGE_LIMIT]


def _error(error: Mapping[str, Any]) -> str:
    location = _object(error.get("location"))
    place = ":".join(str(location[part]) for part in ("file", "row", "col") if part in location)
    said = f"{error.get('code')}: {error.get('message')}"
    return f"{place}: {said}" if place else said


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
