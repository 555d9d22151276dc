"""Generated API cases: whatever is asked, the answer is one that the description names, and never an error of ours.

Requests come from the description that a server gives of itself: by its schemas, then with something of them broken,
and with what earlier answers named. Schemathesis does the same more thoroughly (tests/test_schemathesis.py), and too
slowly to do it 50,000 times.
"""

from __future__ import annotations

import http.client
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jsonschema_rs

from tests.faults.ledger import Entry
from tests.fuzz import bodies
from tests.fuzz.engine import mutations
from turnlog.model import PERMISSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.site import Site
    from tests.harness import Key, Server

MAX_PROBLEMS = 20
EVERYTHING = [part for permission in PERMISSIONS for part in ("--permission", permission)]
RECEIVER = "http://127.0.0.1:9/"
"""Where webhooks send: nobody listens there."""
EXTERNAL_IDS = [f"external-{number}" for number in range(12)]
_METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY")
_TEXTS = (
    "a",
    "Hello",
    "",
    "jane",
    "x" * 255,
    "x" * 256,
    "\0",
    "é\u202e\U0001f600",
    "\x01\t\n",
    "null",
    "%00",
    "../..",
    "'--",
)
_ODD: tuple[Any, ...] = (None, True, 0, -1, 1.5, 10**30, "", [], {}, [[]], {"a": None}, "2021-11-23T12:13:14Z", 123)
_TIMES = ("2021-11-23T12:13:14.555Z", "2021-11-23T12:13:14+05:30", "2016-12-31T23:59:60Z", "0001-01-01T00:00:00+01:00",
          "2021-11-23", "9999-12-31T23:59:59.999999Z")  # fmt: skip


@dataclass
class Case:
    """One request."""

    operation: str
    """Its id; empty where the target may lead anywhere."""
    method: str
    target: str
    headers: dict[str, str]
    body: bytes | None

    def __str__(self) -> str:
        headers = {name: value for name, value in self.headers.items() if not name.startswith("asapp-")}
        return f"{self.method} {self.target} {headers} {self.body!r}"[:1500]


class Generator:
    """Cases from a description and a seed; ``learn`` what answers name, so that it is asked for again."""

    def __init__(self, described: dict[str, Any], key: Key, seed: int) -> None:
        self._described = described
        self._key = key
        self._chance = random.Random(seed)  # noqa: S311 - a repeatable run, not a secret
        self._names: dict[str, list[str]] = {
            name: [] for name in ("conversationId", "messageId", "webhookId", "cursor")
        }
        self.operations = [
            (method.upper(), path, operation)
            for path, item in described["paths"].items()
            for method, operation in item.items()
        ]

    def resolve(self, value: dict[str, Any]) -> dict[str, Any]:
        """What a reference stands for."""
        while "$ref" in value:
            found: Any = self._described
            for name in value["$ref"].removeprefix("#/").split("/"):
                found = found[name]
            value = found
        return value

    def learn(self, operation: str, answer: Any) -> None:
        """Keep some of the ids and cursors in a good answer."""
        if not isinstance(answer, dict):
            return
        kind = "webhookId" if "ebhook" in operation else "messageId" if "Message" in operation else "conversationId"
        found = [(kind, answer.get("id")), ("cursor", answer.get("nextCursor"))]
        found += [("messageId", one) for one in answer.get("ids", ())]
        for name, value in found:
            if isinstance(value, str):
                known = self._names[name]
                known.append(value)
                if len(known) > 30:
                    known.pop(self._chance.randrange(30))

    def next(self) -> Case:
        """The next case."""
        chance = self._chance
        method, path, operation = chance.choice(self.operations)
        name = operation["operationId"]
        broken = chance.random() < 0.4
        headers = {**self._key.headers, "content-type": "application/json"}
        query: list[str] = []
        for parameter in map(self.resolve, operation["parameters"]):
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", quote(self._id(parameter["name"]), safe=""))
            elif parameter.get("required", False) or chance.random() < 0.4:
                value = self._parameter(parameter, broken=broken and chance.random() < 0.4)
                if parameter["in"] == "query":
                    query += [f"{parameter['name']}={quote(value)}"] * (2 if broken and chance.random() < 0.1 else 1)
                elif value.isascii() and value.isprintable():
                    headers[parameter["name"]] = value
        body = None
        if "requestBody" in operation:
            body = self._body(operation["requestBody"]["content"]["application/json"], broken=broken)
        case = Case(name, method, path + ("?" + "&".join(query) if query else ""), headers, body)
        return self._disturbed(case) if chance.random() < 0.08 else case

    def _disturbed(self, case: Case) -> Case:
        """With something wrong around it."""
        match self._chance.randrange(5):
            case 0:
                case.headers.pop("asapp-api-secret")
            case 1:
                case.headers["content-type"] = self._chance.choice(("text/plain", "application/json; charset=latin-1"))
            case 2:
                case.method = self._chance.choice(_METHODS)
            case 3:
                case.operation = ""
                case.target += self._chance.choice(("%zz", "/", "//", "%2F", "?x=1", "&limit=0", "%00", "?%ff", "/.."))
            case _:
                case.headers["content-encoding"] = "gzip"
        return case

    def _id(self, name: str) -> str:
        known = self._names[name]
        return (
            self._chance.choice(known)
            if known and self._chance.random() < 0.85
            else self._chance.choice(("0", "N", "é"))
        )

    def _parameter(self, parameter: dict[str, Any], *, broken: bool) -> str:
        chance = self._chance
        if broken:
            return str(chance.choice((*_TEXTS, "0", "1001", "-1", "1e3", "now")))
        cursors = (*self._names["cursor"], "now", "beginning")
        some = {
            "after": cursors,
            "Last-Event-ID": cursors,
            "wait": ("0.01",),
            "types": (*bodies.EVENTS, ",".join(bodies.EVENTS)),
            "limit": ("1", "2", "100", "1000"),
            "Idempotency-Key": [f"key-{number}" for number in range(300)],
        }
        return chance.choice(some.get(parameter["name"], EXTERNAL_IDS))

    # Bodies.

    def _body(self, content: dict[str, Any], *, broken: bool) -> bytes:
        value = self._value(content["schema"], "")
        if not broken:
            return json.dumps(value).encode()
        if self._chance.random() < 0.5:
            return json.dumps(self._with_something_odd(value)).encode()
        return mutations(self._chance, json.dumps(value).encode(), b'{"a":[null]}', bodies.WORDS)

    def _value(self, schema: dict[str, Any], name: str) -> Any:
        """Something of the schema, as a rule."""
        chance, schema = self._chance, self.resolve(schema)
        while "properties" not in schema and (choices := schema.get("oneOf", schema.get("anyOf"))):
            schema = self.resolve(chance.choice(choices))
        kinds = schema.get("type", "object")
        kind = chance.choice(kinds) if isinstance(kinds, list) else kinds
        made: Any = None
        if "enum" in schema or "const" in schema:
            made = chance.choice(schema.get("enum", [schema.get("const")]))
        elif kind == "object":
            made = self._object(schema, name)
        elif kind == "array":
            count = chance.choice((1, 1, 1, 2, 3, 20)) if schema.get("minItems") else chance.choice((0, 1, 2))
            made = [self._value(schema.get("items", {}), name) for _ in range(count)]
        elif kind in ("integer", "number"):
            made = chance.choice((schema.get("minimum", 1), schema.get("maximum", 10**6), 60))
        elif kind == "boolean":
            made = chance.random() < 0.7
        elif kind == "string":
            made = self._text(name)
        return made

    def _object(self, schema: dict[str, Any], name: str) -> dict[str, Any]:
        fields = schema.get("properties", {})
        wanted = {*schema.get("required", ())} | {field for field in fields if self._chance.random() < 0.4}
        if "oneOf" in schema and fields:
            wanted = {*self._chance.choice(schema["oneOf"])["required"]}
        for part in schema.get("allOf", ()):
            fields = {**fields, **self.resolve(part).get("properties", {})}
            wanted |= {*self.resolve(part).get("required", ())}
        made = {field: self._value(fields.get(field, {}), field) for field in fields if field in wanted}
        if not fields and name in ("metadata", "body", "cookies", "headers"):
            made = {text: self._text(name) for text in self._chance.sample(_TEXTS[:4], 2)}
        return made

    def _text(self, name: str) -> str:
        chance = self._chance
        if name == "url":  # always: what is sent, is sent there
            return RECEIVER + chance.choice(("", "hook", "?a=b"))
        if chance.random() < 0.1:
            return chance.choice((*_TEXTS, *_TIMES))
        some = {
            "timestamp": _TIMES[:3],
            "since": _TIMES[:3],
            "externalId": EXTERNAL_IDS,
            "customerExternalId": EXTERNAL_IDS,
            "after": (*self._names["cursor"], "now"),
            "events": (*self._names["cursor"], "now"),
            "secret": ("whsec_" + "A" * 32,),
            "id": [f"C{number}" for number in range(200)],
        }
        return chance.choice(some.get(name, _TEXTS[:2]))

    def _with_something_odd(self, value: Any) -> Any:
        """One field, somewhere in it, gone, added or of another type."""
        chance = self._chance
        if not isinstance(value, dict | list) or not value or chance.random() < 0.1:
            return chance.choice(_ODD)
        if isinstance(value, list):
            place = chance.randrange(len(value))
            return [*value[:place], self._with_something_odd(value[place]), *value[place + 1 :]]
        name = chance.choice(list(value))
        match chance.randrange(4):
            case 0:
                return {other: content for other, content in value.items() if other != name}
            case 1:
                return value | {chance.choice(("__proto__", "createdTimestamp", "id", "\0")): chance.choice(_ODD)}
        return value | {name: self._with_something_odd(value[name])}


@dataclass
class Judge:
    """What was asked and how it was answered, held against the description."""

    described: dict[str, Any]
    generator: Generator
    statuses: Counter[str] = field(default_factory=Counter)
    accepted: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    _validators: dict[tuple[str, str], Any] = field(default_factory=dict)

    def judge(self, case: Case, status: int, headers: http.client.HTTPMessage, body: bytes) -> None:
        """Note what is wrong with an answer."""
        self.statuses[str(status)] += 1
        for wrong in self._wrong(case, str(status), headers, body):
            self.problems.append(f"{wrong}: {case} -> {status} {body[:300]!r}")

    def _wrong(self, case: Case, status: str, headers: http.client.HTTPMessage, body: bytes) -> Iterator[str]:
        described = self._described_as(case)
        if status >= "500":
            yield "an error of ours"
        if "x-request-id" not in headers:
            yield "an answer without an id"
        if described is not None and status not in described["responses"]:
            yield "a status that is not described"
        answer = None
        if case.method == "HEAD" or status == "204":
            if body:
                yield "a body where none may be"
        elif headers["content-type"] != "application/json":
            yield "not JSON"
        else:
            answer = json.loads(body)
            if described is not None and not self._validator(case.operation, status, described).is_valid(answer):
                yield "a body that is not described"
            if status >= "400" and answer["error"]["requestId"] != headers["x-request-id"]:
                yield "an error of another request"
            if status >= "400" and not answer["error"]["code"].startswith(status):
                yield "a code of another status"
        if described is not None and status < "300":
            self.accepted.add(case.operation)
            self.generator.learn(case.operation, answer)

    def _described_as(self, case: Case) -> dict[str, Any] | None:
        """The operation that was asked for, where that is sure."""
        asked = (case.method, case.operation)
        return next(
            (one for method, _, one in self.generator.operations if (method, one["operationId"]) == asked), None
        )

    def _validator(self, name: str, status: str, operation: dict[str, Any]) -> Any:
        if (name, status) not in self._validators:
            response = self.generator.resolve(operation["responses"][status])
            schema = response["content"]["application/json"]["schema"] | {"components": self.described["components"]}
            self._validators[name, status] = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
        return self._validators[name, status]


def _ask(connection: http.client.HTTPConnection, case: Case) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection.request(case.method, case.target, case.body, case.headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def _generate(server: Server, key: Key, cases: int, seed: int) -> Judge:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/openapi.json")
    described = json.loads(connection.getresponse().read())
    generator = Generator(described, key, seed)
    judge = Judge(described, generator)
    for _ in range(cases):
        case = generator.next()
        judge.judge(case, *_ask(connection, case))
        if len(judge.problems) >= MAX_PROBLEMS:
            break
    connection.close()
    return judge


def generated(site: Site, cases: int, seed: int = 1) -> Entry:
    """So many requests, one after another, to one server; from a seed the same, as far as ids do not differ."""
    server = site.start(TURNLOG_ALLOW_PRIVATE_WEBHOOKS="true", TURNLOG_LOG_REQUESTS="none")
    key = server.create_key("generated", *EVERYTHING)
    with server.client(key):
        judge = _generate(server, key, cases, seed)
    operations = len(judge.generator.operations)
    figures: dict[str, int | float | str] = {
        "cases": judge.statuses.total(),
        "operations": operations,
        "undocumented or 5xx": len(judge.problems),
        "statuses": ", ".join(f"{status}: {count}" for status, count in sorted(judge.statuses.items())),
    }
    missed = {operation["operationId"] for _, _, operation in judge.generator.operations} - judge.accepted
    invalid = f"nothing was accepted by {', '.join(sorted(missed))}" if missed else ""
    return Entry("generated API cases", site.store, figures, tuple(judge.problems), invalid)
