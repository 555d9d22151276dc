"""The page at /docs: the OpenAPI description as one HTML document, rendered here, that loads nothing and runs nothing.

It shows what the description says and knows no operation itself. Everything that goes in is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Json = dict[str, Any]

_CSS = resources.files("turnlog.http").joinpath("docs_page.css").read_text("utf-8")
_CSS_HASH = base64.b64encode(hashlib.sha256(_CSS.encode()).digest()).decode()
HEADERS = (
    (
        b"content-security-policy",
        f"default-src 'none'; style-src 'sha256-{_CSS_HASH}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'".encode(),
    ),
    (b"referrer-policy", b"no-referrer"),
)
"""Nothing may be loaded or run, and the one style sheet is allowed by its hash."""

_CODE = re.compile(r"`([^`]+)`")
_ERROR_CODE = re.compile(r"^(\d{3}-\d{2})(?=:)")


def render(document: Json) -> bytes:
    """The page for an OpenAPI document."""
    title = escape(str(document["info"]["title"]))
    found = [(method, path, one) for path, item in document["paths"].items() for method, one in item.items()]
    tags = [tag["name"] for tag in document.get("tags", ())]
    groups = [(tag, [one for one in found if one[2]["tags"][0] == tag]) for tag in tags]
    page = _Page(document)
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        '<meta name="color-scheme" content="light dark">\n',
        f"<title>{title}: API</title>\n<style>{_CSS}</style>\n</head>\n<body>\n",
        '<a class="skip" href="#main">Skip to the operations</a>\n',
        page.header(),
        _navigation(groups),
        '<main id="main">\n',
        page.start(),
        *(page.group(tag, operations) for tag, operations in groups),
        page.schemas(),
        page.errors(),
        "</main>\n</body>\n</html>\n",
    ]
    return "".join(parts).encode()


def _navigation(groups: list[tuple[str, list[tuple[str, str, Json]]]]) -> str:
    parts = ['<nav aria-label="Contents">\n<ul>\n<li><a href="#start">Start</a></li>\n']
    for tag, operations in groups:
        links = "".join(
            f'<li><a href="#{escape(one["operationId"])}">{escape(one["summary"])}</a></li>\n'
            for _, _, one in operations
        )
        parts.append(f"<li>{escape(tag)}\n<ul>\n{links}</ul>\n</li>\n")
    parts.append('<li><a href="#schemas">Schemas</a></li>\n<li><a href="#errors">Error codes</a></li>\n</ul>\n</nav>\n')
    return "".join(parts)


def _prose(text: str) -> str:
    """Paragraphs with `code` in them: as much of CommonMark as the description uses."""
    return "".join(f"<p>{_inline(paragraph)}</p>\n" for paragraph in text.split("\n\n"))


def _inline(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _block(text: str, label: str) -> str:
    # A long line scrolls: so the block can be reached, and has a name, without a mouse.
    return f'<pre tabindex="0" role="region" aria-label="{escape(label)}"><code>{escape(text)}</code></pre>\n'


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _table(caption: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table of cells that are HTML already; the first of each row heads it."""
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in heads)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>\n'
        for first, *rest in rows
    )
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{escape(caption)}"><table>\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n"
        "</table></div>\n"
    )


def _rules(schema: Json) -> str:
    """What a schema asks for beyond its type, in words."""
    words = []
    if "enum" in schema:
        words.append("one of " + ", ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"]))
    for least, most, unit in (
        ("minLength", "maxLength", "characters"),
        ("minItems", "maxItems", "items"),
        ("minProperties", "maxProperties", "entries"),
        ("minimum", "maximum", ""),
    ):
        low, high = schema.get(least), schema.get(most)
        if low is not None and high is not None:
            words.append(f"{low} to {high} {unit}")
        elif low is not None:
            words.append("not empty" if unit and low == 1 else f"at least {low} {unit}")
        elif high is not None:
            words.append(f"at most {high} {unit}")
    if "pattern" in schema:
        words.append(f"pattern <code>{escape(schema['pattern'])}</code>")
    for name in ("anyOf", "oneOf"):
        fields = [field for option in schema.get(name, ()) for field in option.get("required", ())]
        if fields:
            words.append("needs one of " + ", ".join(f"<code>{escape(field)}</code>" for field in fields))
    return "; ".join(word.strip() for word in words)


class _Page:
    """The parts of the page that look things up in the document."""

    def __init__(self, document: Json) -> None:
        self._document = document
        self._security = [
            scheme["name"] for scheme in document["components"]["securitySchemes"].values() if scheme["in"] == "header"
        ]

    def _resolve(self, value: Json) -> Json:
        """What a reference stands for."""
        found = value
        while "$ref" in found:
            target: Any = self._document
            for name in found["$ref"].removeprefix("#/").split("/"):
                target = target[name]
            found = target
        return found

    def header(self) -> str:
        info = self._document["info"]
        return (
            f"<header>\n<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>\n"
            f"<p>{escape(info.get('summary', ''))}</p>\n</header>\n"
        )

    def start(self) -> str:
        shell = "\n".join(
            (
                "export TURNLOG_URL=http://127.0.0.1:8080   # where this server is",
                "export TURNLOG_API_ID=...                  # as `turnlog keys create` gave them",
                "export TURNLOG_API_SECRET=...",
                "export conversationId=...                  # as createConversation answered",
                "export messageId=...                       # as createMessage answered",
                "export webhookId=...                       # as createWebhook answered",
            )
        )
        return (
            f'<section id="start" aria-labelledby="start-title">\n<h2 id="start-title">Start</h2>\n'
            f"{_prose(self._document['info']['description'])}"
            f"<p>The examples below take the server, the key and the ids from variables:</p>\n"
            f"{_block(shell, 'Variables')}"
            '<p>The same description for programs: <a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1).</p>\n'
            "</section>\n"
        )

    def group(self, tag: str, operations: list[tuple[str, str, Json]]) -> str:
        identity = escape(f"tag-{tag.lower()}")
        described = next((one.get("description", "") for one in self._document["tags"] if one["name"] == tag), "")
        return (
            f'<section id="{identity}" aria-labelledby="{identity}-title">\n'
            f'<h2 id="{identity}-title">{escape(tag)}</h2>\n'
            f"<p>{_inline(described)}</p>\n"
            f"{''.join(self._operation(method, path, one) for method, path, one in operations)}</section>\n"
        )

    def _operation(self, method: str, path: str, operation: Json) -> str:
        name = escape(operation["operationId"])
        head = (
            f'<details class="operation">\n<summary id="{name}"><h3>{_inline(operation["summary"])}</h3> '
            f'<span class="line"><b class="method {method}">{method.upper()}</b> <code>{escape(path)}</code></span>'
            f"</summary>\n<div>\n{_prose(operation['description'])}"
            f'<p class="quiet"><code>{name}</code> · <a href="#{name}">link to this operation</a></p>\n'
        )
        parts = [head]
        parameters = [self._resolve(one) for one in operation["parameters"]]
        if parameters:
            parts.append(self._parameters(parameters))
        example = None
        if "requestBody" in operation:
            example, shown = self._body(operation["requestBody"])
            parts.append(shown)
        parts.append(f"<h4>Try it</h4>\n{_block(self._curl(method, path, parameters, example), 'curl command')}")
        parts.append(self._answers(operation["responses"]))
        parts.append("</div>\n</details>\n")
        return "".join(parts)

    def _parameters(self, parameters: list[Json]) -> str:
        rows = []
        for one in parameters:
            rules = _rules(one["schema"])
            rows.append(
                (
                    f"<code>{escape(one['name'])}</code>",
                    f"{escape(one['in'])}{', required' if one.get('required') else ''}",
                    self._type(one["schema"]),
                    f"{_inline(one['description'])}{f' <small>{rules}</small>' if rules else ''}",
                )
            )
        return f"<h4>Parameters</h4>\n{_table('Parameters', ('Name', 'In', 'Type', 'Meaning'), rows)}"

    def _body(self, body: Json) -> tuple[Any, str]:
        """The first example, and what is shown of a request's body."""
        content = body["content"]["application/json"]
        examples = content.get("examples", {})
        parts = [
            f"<h4>Body</h4>\n<p>{self._type(content['schema'])}. {_inline(body.get('description', ''))}</p>\n",
            self._fields(content["schema"]),
        ]
        for name, example in examples.items():
            label = f"Example: {name}"
            parts.append(f"<h5>{escape(label)}</h5>\n{_block(_pretty(example['value']), label)}")
        values = [example["value"] for example in examples.values()]
        return (values[0] if values else {}), "".join(parts)

    def _curl(self, method: str, path: str, parameters: list[Json], body: Any) -> str:
        query = []
        for one in parameters:
            if one["in"] == "path":
                path = path.replace(f"{{{one['name']}}}", f"${one['name']}")
            elif one["in"] == "query" and one.get("required"):
                query.append(f"{one['name']}={one['example']}")
        target = f"$TURNLOG_URL{path}{'?' if query else ''}{'&'.join(query)}"
        lines = [f'curl -X {method.upper()} "{target}"']
        variables = {"asapp-api-id": "$TURNLOG_API_ID", "asapp-api-secret": "$TURNLOG_API_SECRET"}
        lines += [f'  -H "{name}: {variables[name]}"' for name in self._security]
        if body is not None:
            lines.append('  -H "Content-Type: application/json"')
            quoted = _pretty(body).replace("'", "'\\''")
            lines.append(f"  -d '{quoted}'")
        return " \\\n".join(lines)

    def _answers(self, responses: Json) -> str:
        rows = []
        parts = []
        resolved = {status: self._resolve(reference) for status, reference in responses.items()}
        everywhere = set.intersection(*(set(one["headers"]) for one in resolved.values()))
        for status, one in resolved.items():
            content = one.get("content", {}).get("application/json")
            headers = ", ".join(
                f'<code class="whole">{escape(name)}</code>' for name in one["headers"] if name not in everywhere
            )
            lines = [_inline(line) for line in one["description"].split("\n\n")]
            meaning = "<br>".join(_ERROR_CODE.sub(r'<a href="#error-\1">\1</a>', line) for line in lines)
            rows.append((escape(status), meaning, headers))
            if content is not None and "example" in content:
                label = f"Example of a {status}"
                parts.append(
                    f"<h5>{escape(label)}, {self._type(content['schema'])}</h5>\n"
                    f"{_block(_pretty(content['example']), label)}"
                )
        common = ", ".join(f"<code>{escape(name)}</code>" for name in sorted(everywhere))
        return (
            f"<h4>Answers</h4>\n{''.join(parts)}{_table('Answers', ('Status', 'Meaning', 'Its own headers'), rows)}"
            f'<p class="quiet">Documented for all of them: {common}.</p>\n'
        )

    def _type(self, schema: Json) -> str:
        """The type in a few words; a schema with a name links to it."""
        if "$ref" in schema:
            name = escape(schema["$ref"].rpartition("/")[2])
            return f'<a href="#schema-{name}">{name}</a>'
        kind = schema.get("type", "any")
        if kind == "array":
            return f"list of {self._type(schema['items'])}"
        if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
            return f"map of {self._type(schema['additionalProperties'])}"
        words = " or ".join(kind) if isinstance(kind, list) else str(kind)
        return escape(f"{words} ({schema['format']})" if "format" in schema else words)

    def _fields(self, reference: Json) -> str:
        schema = self._resolve(reference)
        rows = []
        for name, field in schema.get("properties", {}).items():
            rules = _rules(field)
            described = field.get("description") or self._resolve(field).get("description", "")
            rows.append(
                (
                    f"<code>{escape(name)}</code>",
                    self._type(field),
                    "required" if name in schema.get("required", ()) else "optional",
                    f"{_inline(described)}{f' <small>{rules}</small>' if rules else ''}",
                )
            )
        return _table("Fields", ("Field", "Type", "Needed", "Meaning"), rows) if rows else ""

    def schemas(self) -> str:
        parts = ['<section id="schemas" aria-labelledby="schemas-title">\n<h2 id="schemas-title">Schemas</h2>\n']
        for name, schema in self._document["components"]["schemas"].items():
            rules = _rules(schema)
            parts.append(
                f'<section class="schema" id="schema-{escape(name)}">\n<h3>{escape(name)}</h3>\n'
                f"<p>{self._type(schema)}{f'; {rules}' if rules else ''}</p>\n"
                f"{_prose(schema['description']) if 'description' in schema else ''}{self._fields(schema)}</section>\n"
            )
        return f"{''.join(parts)}</section>\n"

    def errors(self) -> str:
        schema = self._document["components"]["schemas"]["ErrorCode"]
        rows = [
            (f'<code id="error-{escape(code)}">{escape(code)}</code>', _inline(text))
            for code, text in zip(schema["enum"], schema["x-enum-descriptions"], strict=True)
        ]
        example = {"error": {"requestId": "01KA8Z7C…", "code": "404-01", "message": "no such conversation"}}
        return (
            '<section id="errors" aria-labelledby="errors-title">\n<h2 id="errors-title">Error codes</h2>\n'
            f"<p>Every answer that is not a success has this form:</p>\n{_block(_pretty(example), 'An error')}"
            f"{_table('Error codes', ('Code', 'When'), rows)}</section>\n"
        )
