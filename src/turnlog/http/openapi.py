"""The OpenAPI 3.1 description: derived from the operations table, with what a table cannot say about each of them.

Which refusals an operation may answer with follows from its row; an operation without a description is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnlog import __version__
from turnlog.http import feed_schemas, schemas
from turnlog.http.bodies import MAX_DEPTH
from turnlog.http.descriptions import CONTRACT
from turnlog.http.feed_descriptions import FEED
from turnlog.http.schemas import CODES, Json, ref

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnlog.config import Config
    from turnlog.http.descriptions import Described
    from turnlog.http.operations import Operation

DESCRIBED = {**CONTRACT, **FEED}
_ALWAYS = ("400-02", "401-01", "405-01", "408-01", "413-01", "414-01", "429-01", "431-01", "500-01", "503-01")
"""What any request may be answered with: it may be late, too long, ill-formed or without a key."""
_WITH_BODY = ("400-01", "400-03", "415-01", "422-01")
_SECURITY = {"apiId": "asapp-api-id", "apiSecret": "asapp-api-secret"}
_STANDING_HEADERS = {"x-request-id": "RequestId", "RateLimit": "RateLimit", "RateLimit-Policy": "RateLimitPolicy"}
_REFUSAL_HEADERS = {
    "401": {"WWW-Authenticate": "WwwAuthenticate"},
    "405": {"Allow": "Allow"},
    "429": {"Retry-After": "RetryAfter"},
    "503": {"Retry-After": "RetryAfter"},
}


def document(operations: Sequence[Operation], config: Config) -> Json:
    """The description, ready to be encoded. Raises LookupError for an operation that is not described here."""
    paths: dict[str, Json] = {}
    refusals: dict[str, Json] = {}
    for operation in operations:
        described = DESCRIBED.get(operation.name)
        if described is None:
            raise LookupError(f"nothing in http/ describes the operation {operation.name}")
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(
            operation, described, config, refusals
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Turnlog",
            "version": __version__,
            "summary": "Durable records of customer conversations",
            "description": _introduction(config),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "this server"}],
        "security": [{name: [] for name in _SECURITY}],
        "tags": [
            {"name": "Conversations", "description": "Who talks with whom."},
            {"name": "Messages", "description": "What was said."},
            {"name": "Health", "description": "Whether the service works."},
            {"name": "Changes", "description": "What was recorded in the account, in order, from any place on."},
            {"name": "Webhooks", "description": "The same, sent to you; signed as Standard Webhooks has it."},
        ],
        "paths": paths,
        "webhooks": feed_schemas.webhooks(),
        "components": {
            "schemas": schemas.schemas(config) | feed_schemas.schemas(config),
            "parameters": schemas.parameters(config) | feed_schemas.parameters(),
            "headers": schemas.headers(),
            "responses": refusals,
            "securitySchemes": {
                name: {"type": "apiKey", "in": "header", "name": header} for name, header in _SECURITY.items()
            },
        },
    }


def operation_id(name: str) -> str:
    """``create_message`` as ``createMessage``."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _introduction(config: Config) -> str:
    lenient = (
        "An external id may also come as a JSON integer, which becomes its decimal text.\n\n" if config.lenient else ""
    )
    repeats = (
        "An exact repeat of a recorded message is refused with 409-01.\n\n"
        if config.refuse_repeats
        else "A key may be set to refuse exact repeats of recorded messages, with 409-01.\n\n"
    )
    return (
        "A self-hosted server of the Conversations API. What got a 200 is on disk.\n\n"
        "Every request carries the headers `asapp-api-id` and `asapp-api-secret`, both, once each. What belongs to "
        "another account is not there: 404-01.\n\n"
        "Bodies are JSON in UTF-8 (`application/json`) of up to "
        f"{config.max_body_bytes:,} bytes, {config.max_batch_body_bytes:,} for a batch, nested no deeper than "
        f"{MAX_DEPTH}. A field that is not described is ignored. {lenient}"
        f"A request's target may have {config.max_target_bytes:,} bytes, its headers {config.max_header_bytes:,} "
        f"bytes and {config.max_headers} fields.\n\n"
        "Every answer names its request in `x-request-id`. Whatever is not a success is an `Error` with a stable "
        "code. Retry 429 and 503 after `Retry-After`, and what was answered 500 or not at all; writes with the same "
        "`Idempotency-Key`. Nothing else is worth sending again unchanged. "
        f"{repeats}"
        "Where `GET` is offered, so is `HEAD`; `OPTIONS` answers 204 with `Allow`."
    )


def _operation(operation: Operation, described: Described, config: Config, refusals: dict[str, Json]) -> Json:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    codes = {*_ALWAYS, *described.codes}
    codes |= set(_WITH_BODY) if described.body is not None else set()
    codes |= {"403-01"} if operation.permission is not None else set()
    codes |= {"404-01"} if names else set()
    text = described.text
    if operation.permission is not None:
        text += f"\n\nThe key needs the permission `{operation.permission}`."
    made = {
        "operationId": operation_id(operation.name),
        "tags": [described.tag],
        "summary": described.summary,
        "description": text,
        "parameters": [ref("parameters", name) for name in (*names, *described.parameters)],
        "responses": {**_success(described), **_refusals(codes, refusals)},
    }
    if described.body is not None:
        made["requestBody"] = _request_body(described, operation.max_body_bytes(config), lenient=config.lenient)
    return made


def _request_body(described: Described, max_bytes: int, *, lenient: bool) -> Json:
    examples = described.examples | (described.lenient_examples if lenient else {})
    return {
        "required": True,
        "description": f"At most {max_bytes:,} bytes.",
        "content": {
            "application/json": {
                "schema": ref("schemas", str(described.body)),
                "examples": {name: {"value": value} for name, value in examples.items()},
            }
        },
    }


def _headers(status: str) -> Json:
    named = _STANDING_HEADERS | _REFUSAL_HEADERS.get(status, {})
    return {name: ref("headers", component) for name, component in named.items()}


def _success(described: Described) -> Json:
    status = "204" if described.answer is None else "200"
    made: Json = {"description": described.answers, "headers": _headers(status)}
    if described.answer is not None:
        made["content"] = {
            "application/json": {"schema": ref("schemas", described.answer), "example": described.answer_example}
        }
        if described.stream is not None:
            made["content"]["text/event-stream"] = {"schema": {"type": "string", "description": described.stream}}
    if described.links:
        made["links"] = {
            name: {"operationId": operation_id(target), "parameters": parameters}
            for name, (target, parameters) in described.links.items()
        }
    return {status: made}


def _refusals(codes: set[str], components: dict[str, Json]) -> Json:
    """Responses by status, each a component that names exactly the codes which the operation may answer with."""
    by_status: dict[str, list[str]] = {}
    for code in sorted(codes):
        by_status.setdefault(code[:3], []).append(code)
    made = {}
    for status, same in by_status.items():
        name = "-".join((status, *(code[4:] for code in same)))
        components.setdefault(name, _refusal(status, same))
        made[status] = ref("responses", name)
    return made


def _refusal(status: str, codes: list[str]) -> Json:
    narrowed = {"properties": {"error": {"properties": {"code": {"enum": codes}}}}}
    return {
        "description": "\n\n".join(f"{code}: {CODES[code]}" for code in codes),
        "headers": _headers(status),
        "content": {"application/json": {"schema": {"allOf": [ref("schemas", "Error"), narrowed]}}},
    }
