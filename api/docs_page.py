"""`/docs`: the OpenAPI document as one HTML page, with nothing from outside and no script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8885; --soft: #8881; --mark: light-dark(#0b57d0, #8ab4f8); }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; }
h2 { margin-top: 3rem; font-size: 1.3rem; border-bottom: 2px solid var(--line); padding-bottom: .3rem; }
h3 { margin: 2.2rem 0 .4rem; font-size: 1.02rem; scroll-margin-top: 1rem; }
a { color: var(--mark); text-decoration: none; } a:hover { text-decoration: underline; }
code, pre { font: .9em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--soft); padding: .7rem .9rem; overflow-x: auto; border-radius: .4rem; overflow-wrap: normal; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; font-size: .94rem; }
th { font-weight: 600; } th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; }
tr { border-bottom: 1px solid var(--line); } td:first-child, th:first-child { width: 24%; }
.verb { display: inline-block; min-width: 4.4rem; font-weight: 700; } .open { color: #888; font-weight: 400; }
nav ul { padding: 0; margin: .2rem 0 1rem; } nav li { list-style: none; }
"""
_PROBLEM: Final = "application/problem+json"
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page's Content-Security-Policy: this style and nothing else."""

_EXAMPLE: Final = """\
# read the live policy; the header ETag says which version it is
curl -i "$API/policies/billing" -H "Authorization: Bearer $TOKEN"

# change that version, and wait until every OPA enforces it; safe to repeat
curl -X PUT "$API/policies/billing?wait=active" -H "Authorization: Bearer $TOKEN" \\
  -H 'Content-Type: application/json' -H 'If-Match: "<etag>"' -H "Idempotency-Key: $KEY" -d @policy.json

# change a part of its data
curl -X PATCH "$API/policies/billing" -H "Authorization: Bearer $TOKEN" \\
  -H 'Content-Type: application/merge-patch+json' -H 'If-Match: "<etag>"' \\
  -d '{"data": {"limits": {"refund": 50}}}'
"""

Row = tuple[str, ...]
"""Cells, as HTML."""


def render(document: Mapping[str, Any]) -> str:
    """The whole page."""
    info = document["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} API <small>{escape(info['version'])}</small></h1>"
        f"<p>{_text(info['description'])} Programs read <a href='openapi.json'>openapi.json</a>. Every route but those "
        "marked open needs a token: <code>Authorization: Bearer …</code>. Every error is a "
        f"<a href='#schema-Problem'>Problem</a> ({_code(_PROBLEM)}), every answer has {_code('X-Request-ID')}.</p>"
        f"<pre>{escape(_EXAMPLE)}</pre>{_index(document)}{''.join(_group(document, tag) for tag in document['tags'])}"
        f'<h2 id="schemas">Schemas</h2>{_schemas(document)}</body></html>\n'
    )


def _operations(document: Mapping[str, Any], tag: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    return [
        (path, verb, found)
        for path, verbs in document["paths"].items()
        for verb, found in verbs.items()
        if tag in found["tags"]
    ]


def _index(document: Mapping[str, Any]) -> str:
    groups = []
    for tag in document["tags"]:
        rows = _operations(document, tag["name"])
        lines = "".join(f'<li><a href="#{escape(row[2]["operationId"])}">{_line(*row)}</a></li>' for row in rows)
        groups.append(f"<b>{escape(tag['name'])}</b><ul>{lines}</ul>")
    return f"<nav>{''.join(groups)}<a href='#schemas'>Schemas</a></nav>"


def _line(path: str, verb: str, found: Mapping[str, Any]) -> str:
    note = ' <span class="open">open</span>' if found.get("security") == [] else ""
    return f'<code><span class="verb">{verb.upper()}</span>{escape(path)}</code>{note}'


def _group(document: Mapping[str, Any], tag: Mapping[str, str]) -> str:
    parts = [f"<h2>{escape(tag['name'])}</h2><p>{_text(tag['description'])}</p>"]
    parts += [_operation(*row) for row in _operations(document, tag["name"])]
    return "".join(parts)


# --- one operation ---------------------------------------------------------------------------------------------------


def _operation(path: str, verb: str, found: Mapping[str, Any]) -> str:
    parameters = [
        (_code(p["name"]), escape(p["in"]), _kind(p["schema"]), _text(p["description"])) for p in found["parameters"]
    ]
    bodies = [(_code(media), _kind(said["schema"])) for media, said in _content(found.get("requestBody", {}))]
    answers = [(escape(status), _answer(said)) for status, said in found["responses"].items()]
    return (
        f'<h3 id="{escape(found["operationId"])}">{_line(path, verb, found)}</h3><p>{_text(found["summary"])}</p>'
        f"{_curl(path, found)}{_table(('Parameter', 'In', 'Type', ''), parameters)}"
        f"{_table(('Body', 'Schema'), bodies)}{_table(('Answer', ''), answers)}"
    )


def _curl(path: str, found: Mapping[str, Any]) -> str:
    if "x-curl" not in found:
        return ""
    command = f'curl "$API{path.replace("{project}", "billing")}" -H "Authorization: Bearer $TOKEN" {found["x-curl"]}'
    return f"<pre>{escape(command)}</pre>"


def _answer(said: Mapping[str, Any]) -> str:
    kinds = "".join(
        f"<br>{_code(media)} {_kind(what['schema'])}" for media, what in _content(said) if media != _PROBLEM
    )
    names = ", ".join(_code(name) for name in said.get("headers", {}) if name != "X-Request-ID")
    return f"{_text(said['description'])}{kinds}{f'<br>Headers: {names}' if names else ''}"


def _content(said: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    content: Mapping[str, Mapping[str, Any]] = said.get("content", {})
    return content.items()


# --- schemas ---------------------------------------------------------------------------------------------------------


def _schemas(document: Mapping[str, Any]) -> str:
    return "".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items())


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (_code(field), _kind(said), "" if field in required else "optional", _text(said.get("description", "")))
        for field, said in schema["properties"].items()
    ]
    title = f'<h3 id="schema-{escape(name)}">{escape(name)}</h3>'
    return f"{title}<p>{_text(schema['description'])}</p>{_table(('Field', 'Type', '', ''), rows)}"


def _kind(schema: Mapping[str, Any]) -> str:
    """A schema in a few words, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " | ".join(_code(str(value)) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    if "properties" in schema:
        return ", ".join(f"{_code(name)}: {_kind(said)}" for name, said in schema["properties"].items())
    kinds = schema.get("type", "anything")
    return escape(kinds if isinstance(kinds, str) else " or ".join(kinds))


def _table(head: tuple[str, ...], rows: Iterable[Row]) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{cells}</table>" if cells else ""


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _text(text: str) -> str:
    """Escaped, with `backquotes` as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
