"""The page at /docs: complete, self-contained, and its examples work."""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
import subprocess
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import msgspec

from tests.harness import need
from tests.test_openapi import DOCUMENT, operations
from turnlog.http import docs_page, schemas
from turnlog.http.table import TABLE
from turnlog.model import PERMISSIONS

if TYPE_CHECKING:
    from tests.harness import Server


class Elements(HTMLParser):
    """What a page consists of: its elements with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.style = ""
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data


def test_the_page_shows_every_operation_and_every_code(server: Server) -> None:
    """``GET /docs`` needs no key; each operation has its path, an anchor and a line in the contents."""
    with server.client() as anyone:
        answer = anyone.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Elements(answer.text)
    assert not page.open, "an element is not closed"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"] for tag, attributes in page.elements if tag == "a"}
    for method, path, operation in operations(DOCUMENT):
        assert f"{method} {path}" in page.text
        assert operation["summary"] in page.text
        assert operation["operationId"] in ids
        assert f"#{operation['operationId']}" in links
    for code in schemas.CODES:
        assert f"error-{code}" in ids
    for link in links:
        assert link is not None
        assert link == "/openapi.json" or link.removeprefix("#") in ids


def test_the_page_loads_nothing_and_runs_nothing(server: Server) -> None:
    """No script, no image, no style sheet from anywhere; the policy forbids all but the one style in the page."""
    with server.client() as anyone:
        answer = anyone.get("/docs")
    page = Elements(answer.text)
    assert {tag for tag, _ in page.elements}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "embed", "form", "base", "svg", "video", "audio"}
    )
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "style", "action", "background"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
        assert "href" not in attributes or tag == "a"
    assert "url(" not in page.style
    assert "@import" not in page.style
    hashed = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert answer.headers["content-security-policy"].split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{hashed}'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]


def test_the_curl_examples_work_as_they_stand(server: Server) -> None:
    """Pasted one after the other into a shell with the page's variables set, every one succeeds.

    What deletes comes last: the page has the operations of one path together.
    """
    need("curl")
    permissions = [part for permission in PERMISSIONS for part in ("--permission", permission)]
    key = server.create_key("curl", *permissions)
    page = docs_page.render(DOCUMENT).decode()
    commands = re.findall(r'aria-label="curl command"><code>(.*?)</code>', page, re.DOTALL)
    assert len(commands) == len(TABLE)
    variables = {
        "TURNLOG_URL": server.base,
        "TURNLOG_API_ID": key.id,
        "TURNLOG_API_SECRET": key.secret,
    }
    with server.client(key):
        for command in sorted(map(html.unescape, commands), key=lambda one: "-X DELETE" in one):
            shell = ["sh", "-c", command.replace("curl ", "curl --silent --show-error --fail-with-body ", 1)]
            done = subprocess.run(shell, env=os.environ | variables, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            if done.stdout.startswith('{"id"'):
                path = command.partition("\n")[0]
                name = "webhookId" if "/webhooks" in path else "messageId" if "/messages" in path else "conversationId"
                variables[name] = msgspec.json.decode(done.stdout)["id"]


def test_the_page_escapes_whatever_it_shows() -> None:
    """Markup in a description is shown, not obeyed."""
    bad = "<script>alert('x')</script>\"&"
    described = msgspec.json.decode(msgspec.json.encode(DOCUMENT))
    described["info"] |= {"title": bad, "summary": bad, "description": bad, "version": bad}
    described["components"]["schemas"]["ErrorCode"]["x-enum-descriptions"] = [bad] * len(schemas.CODES)
    described["components"]["schemas"]["MessageInput"]["properties"][bad] = {"type": "string", "description": bad}
    operation = described["paths"]["/v1/health"]["get"]
    operation |= {"summary": bad, "description": bad}
    page = docs_page.render(described).decode()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8
