"""The page for people: whole, readable without a script, and with nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any, get_args

import pytest

from api import schemas
from api.docs_page import POLICY, render
from api.openapi import document

VOID = {"meta", "br", "!doctype"}


class Page(HTMLParser):
    """What a browser would see; raises where tags do not fit together."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


@pytest.fixture(scope="module")
def html() -> str:
    return render(document("1.2.3"))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_nothing_comes_from_outside_and_nothing_runs(html: str, page: Page) -> None:
    assert not page.tags & {"script", "link", "img", "iframe", "object", "base", "form"}
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), tag
        assert name not in {"src", "style", "srcset"}, tag
        assert name != "href" or re.fullmatch(r"#[\w-]+|openapi\.json", value or ""), value
    assert "url(" not in html
    assert "@import" not in html


def test_the_policy_allows_this_style_and_nothing_else(html: str) -> None:
    style = html.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in POLICY
    assert "default-src 'none'" in POLICY
    assert "unsafe" not in POLICY


def test_every_link_leads_somewhere(page: Page) -> None:
    places = [value for _, name, value in page.attributes if name == "id"]
    assert len(places) == len(set(places))
    assert {value[1:] for _, name, value in page.attributes if name == "href" and value and value[0] == "#"} <= set(
        places
    )


def test_every_operation_parameter_field_and_code_stands_on_the_page(page: Page) -> None:
    described = document("1.2.3")
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()}{path}" in page.text
            assert operation["summary"].replace("`", "") in page.text
            assert all(parameter["name"] in page.text for parameter in operation["parameters"])
    for name, schema in described["components"]["schemas"].items():
        assert f"schema-{name}" in {value for _, key, value in page.attributes if key == "id"}
        assert set(schema["properties"]) <= set(page.words), name
    assert set(get_args(schemas.Code)) <= set(page.words)
    assert "1.2.3" in page.text


def test_there_are_commands_to_copy(page: Page) -> None:
    assert 'curl -X PUT "$API/policies/billing?wait=active"' in page.text
    assert 'curl "$API/policies/billing:validate"' in page.text
    assert 'If-Match: "<etag>"\'' in page.text


def test_text_that_looks_like_html_stays_text() -> None:
    described: dict[str, Any] = document("<b>1</b>")
    described["paths"]["/status"]["get"]["summary"] = "<script>alert(1)</script>"
    described["components"]["schemas"]["Place"]["properties"]["<img src=x>"] = {"type": "string"}
    page = Page(render(described))
    assert not page.tags & {"script", "img"}
    assert "<script>alert(1)</script>" in page.text
