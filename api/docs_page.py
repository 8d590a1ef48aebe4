"""`/docs`: the OpenAPI document as one HTML page, with nothing from outside and no script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any, Final

POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page's Content-Security-Policy."""

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; font-size: 1.15rem; }
code, pre { font: 0.9em/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; border-radius: .4rem; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; }
td, th { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); }
.verb { display: inline-block; min-width: 4.2rem; font-weight: 700; }
nav li { list-style: none; } nav ul { padding: 0; }
"""
_EXAMPLE: Final = """\
# read the live policy and its ETag
curl -si "$API/policies/billing" -H "Authorization: Bearer $TOKEN"

# change it: the ETag says which version is meant
curl -s -X PUT "$API/policies/billing?wait=active" -H "Authorization: Bearer $TOKEN" \\
  -H 'Content-Type: application/json' -H 'If-Match: "…"' -H "Idempotency-Key: $(uuidgen)" -d @policy.json

# change a part of its data
curl -s -X PATCH "$API/policies/billing" -H "Authorization: Bearer $TOKEN" \\
  -H 'Content-Type: application/merge-patch+json' -H 'If-Match: "…"' -d '{"data": {"limits": {"refund": 50}}}'
"""


def render(document: Mapping[str, Any]) -> str:
    """The whole page."""
    rows = [(path, verb, found) for path, verbs in document["paths"].items() for verb, found in verbs.items()]
    index = "".join(
        f'<li><a href="#{escape(found["operationId"])}"><code><span class="verb">{verb.upper()}</span>'
        f"{escape(path)}</code></a></li>"
        for path, verb, found in rows
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>regops API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>regops API {escape(document['info']['version'])}</h1>"
        f"<p>{escape(document['info']['description'])} Programs read <a href='openapi.json'>openapi.json</a>. "
        f"Every route but those marked open needs a token: <code>Authorization: Bearer …</code>.</p>"
        f"<pre>{escape(_EXAMPLE)}</pre><nav><ul>{index}</ul></nav>"
        f"{''.join(_operation(*row) for row in rows)}<h2>Schemas</h2>{_schemas(document)}</body></html>"
    )


def _operation(path: str, verb: str, found: Mapping[str, Any]) -> str:
    note = " <small>open</small>" if found.get("security") == [] else ""
    title = f'<code><span class="verb">{verb.upper()}</span>{escape(path)}</code>{note}'
    parts = [f'<h2 id="{escape(found["operationId"])}">{title}</h2><p>{_text(found["summary"])}</p>']
    rows = [(p["name"], p["in"], p["description"]) for p in found["parameters"]]
    parts.append(_table(("Parameter", "In", ""), rows))
    if "requestBody" in found:
        kinds = [(kind, _reference(said["schema"]), "") for kind, said in found["requestBody"]["content"].items()]
        parts.append(_table(("Body", "Schema", ""), kinds))
    answers = [
        (status, ", ".join(said.get("content", {})), said["description"]) for status, said in found["responses"].items()
    ]
    parts.append(_table(("Answer", "Type", ""), answers))
    return "".join(parts)


def _schemas(document: Mapping[str, Any]) -> str:
    return "".join(
        f'<h3 id="schema-{escape(name)}">{escape(name)}</h3><pre>{escape(json.dumps(schema, indent=2))}</pre>'
        for name, schema in document["components"]["schemas"].items()
    )


def _reference(schema: Mapping[str, Any]) -> str:
    return schema["$ref"].rpartition("/")[2] if "$ref" in schema else json.dumps(schema)


def _table(head: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{_text(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{cells}</table>"


def _text(text: str) -> str:
    """Escaped, with `backquotes` as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
