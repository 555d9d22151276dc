"""The description at /openapi.json: complete, valid and true to the settings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import msgspec
import pytest
import schemathesis

from turnlog.config import Config
from turnlog.http import openapi, schemas
from turnlog.http.openapi import document, operation_id
from turnlog.http.operations import Operation
from turnlog.http.table import TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.harness import Server

DOCUMENT = document(TABLE, Config())
STRICT = document(TABLE, Config(lenient=False, refuse_repeats=True, max_body_bytes=1234, max_target_bytes=4321))
METHODS = {"get", "post"}


def operations(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of each operation."""
    for path, item in described["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def resolve(described: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """What a reference stands for."""
    found: Any = value
    if "$ref" in value:
        found = described
        for name in value["$ref"].removeprefix("#/").split("/"):
            found = found[name]
    assert isinstance(found, dict)
    return found


def validator(described: dict[str, Any], schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """A validator that knows the components."""
    whole = {**schema, "components": described["components"]}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


def is_valid(schema: str, value: Any, described: dict[str, Any] = DOCUMENT) -> bool:
    """Whether a component schema calls ``value`` valid."""
    return validator(described, {"$ref": f"#/components/schemas/{schema}"}).is_valid(value)


@pytest.mark.parametrize("described", [DOCUMENT, STRICT], ids=["default", "strict"])
def test_the_description_is_valid_openapi_3_1(described: dict[str, Any]) -> None:
    """Schemathesis validates it against the OpenAPI meta-schema, and every schema is one of JSON Schema 2020-12."""
    loaded = schemathesis.openapi.from_dict(described)
    loaded.validate()
    assert loaded.specification.version == "3.1.0"
    for schema in described["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def test_every_reference_leads_somewhere() -> None:
    """No ``$ref`` and no link names what is not there."""
    references = set(re.findall(r'"\$ref":"([^"]+)"', msgspec.json.encode(DOCUMENT).decode()))
    assert references
    for reference in references:
        resolve(DOCUMENT, {"$ref": reference})
    names = {operation["operationId"] for _, _, operation in operations(DOCUMENT)}
    links = [
        link
        for _, _, operation in operations(DOCUMENT)
        for answer in operation["responses"].values()
        for link in answer.get("links", {}).values()
    ]
    assert links
    assert {link["operationId"] for link in links} <= names


def test_every_operation_of_the_table_is_described_and_nothing_else() -> None:
    """The description and the table name the same operations, in the same order, by unique ids."""
    described = [(method, path, operation["operationId"]) for method, path, operation in operations(DOCUMENT)]
    assert sorted(described) == sorted((o.method, o.path, operation_id(o.name)) for o in TABLE)
    assert len({name for _, _, name in described}) == len(TABLE)
    assert set(openapi.DESCRIBED) == {operation.name for operation in TABLE}
    assert operation_id("list_messages_by_external_id") == "listMessagesByExternalId"


def test_an_operation_without_a_description_fails_loudly() -> None:
    """A new row in the table without words for it stops the server from starting."""
    forgotten = Operation("forget_it", "POST", "/conversation/v1/forget", TABLE[0].handler)
    with pytest.raises(LookupError, match="forget_it"):
        document((*TABLE, forgotten), Config())


def test_every_code_of_the_server_is_explained() -> None:
    """The codes that errors.py can send, those explained and those some operation documents are the same."""
    assert set(schemas.CODES) == schemas.known_codes()
    documented = {code for name in DOCUMENT["components"]["responses"] for code in codes_of(name)}
    assert documented == schemas.known_codes()


def codes_of(response: str) -> list[str]:
    """The codes that a response component names."""
    status, *numbers = response.split("-")
    return [f"{status}-{number}" for number in numbers]


def test_both_credentials_are_required_together_everywhere() -> None:
    """One security requirement with both headers, which no operation weakens."""
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert {(s["type"], s["in"], s["name"]) for s in schemes.values()} == {
        ("apiKey", "header", "asapp-api-id"),
        ("apiKey", "header", "asapp-api-secret"),
    }
    assert DOCUMENT["security"] == [{name: [] for name in schemes}]
    assert not any("security" in operation for _, _, operation in operations(DOCUMENT))


EVERYWHERE = {"400", "401", "405", "408", "413", "414", "429", "431", "500", "503"}


@pytest.mark.parametrize(
    ("name", "statuses"),
    [
        ("create_conversation", {"200", "403", "409", "415", "422"}),
        ("find_conversations", {"200", "403", "422"}),
        ("read_conversation", {"200", "403", "404"}),
        ("create_message", {"200", "403", "404", "409", "415", "422"}),
        ("list_messages", {"200", "403", "404"}),
        ("read_message", {"200", "403", "404"}),
        ("create_messages", {"200", "403", "404", "409", "415", "422"}),
        ("list_messages_by_external_id", {"200", "403", "404", "422"}),
        ("authenticate", {"204", "403", "404", "415", "422"}),
        ("health", {"200"}),
        ("list_changes", {"200", "403", "410", "422"}),
        ("create_webhook", {"200", "403", "410", "415", "422"}),
        ("list_webhooks", {"200", "403"}),
        ("read_webhook", {"200", "403", "404"}),
        ("change_webhook", {"200", "403", "404", "415", "422"}),
        ("rotate_webhook", {"200", "403", "404", "415", "422"}),
        ("test_webhook", {"200", "403", "404"}),
        ("list_failed_events", {"200", "403", "404"}),
        ("replay_webhook", {"200", "403", "404", "410", "415", "422"}),
        ("delete_webhook", {"204", "403", "404"}),
    ],
)
def test_each_operation_documents_what_it_can_answer(name: str, statuses: set[str]) -> None:
    """Its own statuses and those that any request may be answered with; every refusal is the error envelope."""
    found = {operation["operationId"]: operation for _, _, operation in operations(DOCUMENT)}
    responses = found[operation_id(name)]["responses"]
    assert set(responses) == statuses | EVERYWHERE
    for status, reference in responses.items():
        answer = resolve(DOCUMENT, reference)
        assert "x-request-id" in answer["headers"]
        assert ("content" in answer) == (status != "204")
        if status >= "400":
            schema = validator(DOCUMENT, answer["content"]["application/json"]["schema"])
            for code in schemas.CODES:
                error = {"error": {"requestId": "x", "code": code, "message": "x"}}
                assert schema.is_valid(error) == (code in codes_of(reference["$ref"].rpartition("/")[2]))
    assert "Retry-After" in resolve(DOCUMENT, responses["429"])["headers"]
    assert "Retry-After" in resolve(DOCUMENT, responses["503"])["headers"]
    assert "Allow" in resolve(DOCUMENT, responses["405"])["headers"]
    assert "WWW-Authenticate" in resolve(DOCUMENT, responses["401"])["headers"]


@pytest.mark.parametrize("described", [DOCUMENT, STRICT], ids=["default", "strict"])
def test_every_example_is_valid(described: dict[str, Any]) -> None:
    """What the examples show is what the schemas ask for."""
    seen = 0
    for _, _, operation in operations(described):
        contents = [operation["requestBody"]["content"]] if "requestBody" in operation else []
        contents += [answer["content"] for answer in operation["responses"].values() if "content" in answer]
        for content in contents:
            media = content["application/json"]
            values = [example["value"] for example in media.get("examples", {}).values()]
            for value in (*values, *([media["example"]] if "example" in media else [])):
                validator(described, media["schema"]).validate(value)
                seen += 1
    for parameter in described["components"]["parameters"].values():
        if "example" in parameter:
            validator(described, parameter["schema"]).validate(parameter["example"])
    assert seen >= len(TABLE)


def test_leniency_and_limits_appear_as_configured() -> None:
    """Integer external ids and the top-level token are described only where accepted; limits are the real ones."""
    integer = {"externalId": 1, "customer": {"externalId": "c"}, "timestamp": "2021-11-23T12:13:14Z"}
    token = {"customerExternalId": "c", "token": "t"}
    assert is_valid("ConversationInput", integer)
    assert is_valid("AuthenticationInput", token)
    assert not is_valid("ConversationInput", integer, STRICT)
    assert not is_valid("AuthenticationInput", token, STRICT)
    assert "1,048,576 bytes, 8,388,608 for a batch" in DOCUMENT["info"]["description"]
    assert "1,234 bytes" in STRICT["info"]["description"]
    assert "4,321 bytes" in STRICT["info"]["description"]
    assert (
        STRICT["paths"]["/conversation/v1/conversations"]["post"]["requestBody"]["description"]
        == "At most 1,234 bytes."
    )


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("2021-11-23T12:13:14.555Z", True),
        ("2021-11-23t12:13:14.123456789012345z", True),
        ("2021-11-23T12:13:14+05:30", True),
        ("0001-01-01T00:00:00Z", True),
        ("9999-12-31T23:59:59.999Z", True),
        ("0000-12-31T23:59:59Z", False),
        ("0001-01-01T00:00:00+00:01", False),
        ("9999-12-31T23:59:59-00:01", False),
        ("2021-02-30T00:00:00Z", False),
        ("2021-11-23T24:00:00Z", False),
        ("2021-11-23T12:13:14,5Z", False),
        ("2021-11-23T12:13:14.1234567890123456Z", False),
        ("20211123T121314Z", False),
        ("2021-11-23", False),
    ],
)
def test_timestamps_are_described_as_they_are_read(text: str, valid: bool) -> None:
    """Pattern and format together are what instants.py reads, except for times without a zone (the next test)."""
    assert is_valid("Timestamp", text) == valid


def test_a_timestamp_without_a_zone_is_left_to_the_pattern() -> None:
    """``format`` is an annotation in OpenAPI 3.1, so a time without a zone, which is read as UTC, is valid."""
    schema = {"type": "string", "pattern": DOCUMENT["components"]["schemas"]["Timestamp"]["pattern"]}
    assert jsonschema_rs.Draft202012Validator(schema).is_valid("2021-11-23T12:13:14")


@pytest.mark.parametrize(
    ("key", "valid"),
    [
        ("a", True),
        ("a" * 255, True),
        ("two words", True),
        ('"quoted"', True),
        ('"' + "a" * 255 + '"', True),
        (r'"with \" and \\"', True),
        ("", False),
        ('""', False),
        ("a" * 256, False),
        ('"' + "a" * 256 + '"', False),
        ('"open', False),
        ("näh", False),
    ],
)
def test_idempotency_keys_are_described_as_they_are_read(key: str, valid: bool) -> None:
    """1 to 255 printable ASCII characters, bare or as a quoted string."""
    schema = DOCUMENT["components"]["parameters"]["idempotencyKey"]["schema"]
    assert jsonschema_rs.Draft202012Validator(schema).is_valid(key) == valid


def test_strings_with_nul_and_over_the_limits_are_not_valid() -> None:
    """What the server answers with 422-01 is not what the schemas call valid."""
    assert is_valid("ExternalId", "x" * 255)
    assert not is_valid("ExternalId", "x" * 256)
    assert not is_valid("ExternalId", "a\0")
    message = {"text": "a", "sender": {"role": "agent", "externalId": "a"}, "timestamp": "2021-11-23T12:13:14Z"}
    assert is_valid("MessageInput", message)
    assert not is_valid("MessageInput", message | {"text": "a\0b"})
    assert is_valid("MessagesInput", {"messages": [message] * 300})
    assert not is_valid("MessagesInput", {"messages": [message] * 301})


def test_the_server_serves_its_description(server: Server, client: httpx.Client) -> None:
    """``GET /openapi.json`` needs no key and is the document of the settings in force."""
    with server.client() as anyone:
        answer = anyone.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == DOCUMENT


def test_the_served_description_follows_the_settings(start: Callable[..., Server]) -> None:
    """A server that is not lenient does not describe leniency."""
    with start(environment={"TURNLOG_LENIENT": "false", "TURNLOG_MAX_BODY_BYTES": "4321"}).client() as anyone:
        answer = anyone.get("/openapi.json").json()
    assert answer["components"]["schemas"]["ExternalId"]["type"] == "string"
    assert "4,321 bytes" in answer["info"]["description"]
