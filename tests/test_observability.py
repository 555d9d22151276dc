"""What an operator sees: health, metrics and the log; and what must never be in any of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from tests.harness import V1, create_conversation, error_of, message, wait_for
from tests.wire import HOST, exchange, request

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.harness import Key, Server

CANARY = "canary-7f3a"


def _samples(client: httpx.Client) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Every sample of ``/metrics``: by name, then by its labels in order."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def _requests(samples: dict[str, dict[tuple[tuple[str, str], ...], float]], operation: str, status: int) -> float:
    return samples["turnlog_requests_total"].get((("operation", operation), ("status", str(status))), 0)


def test_alive_and_ready_need_no_key_and_say_nothing_of_accounts(server: Server) -> None:
    with server.client() as client:
        assert (client.get("/livez").status_code, client.get("/livez").json()) == (200, {"status": "alive"})
        assert (client.get("/readyz").status_code, client.get("/readyz").json()) == (200, {"status": "ready"})


def test_the_metrics_count_what_happened(start: Callable[..., Server], store_kind: str) -> None:
    server = start()
    with server.client(server.create_key("tests")) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        before = _samples(client)
        for _ in range(3):
            assert client.post(path, json=message()).status_code == 200
        assert client.post(f"{path}/batch", json={"messages": [message()] * 7}).status_code == 200
        error_of(client.post(path, json={}), "400-03")
        error_of(client.get(f"{V1}/nowhere"), "404-01")
        after = _samples(client)
    grown = {
        (operation, status): _requests(after, operation, status) - _requests(before, operation, status)
        for operation, status in (
            ("create_message", 200),
            ("create_messages", 200),
            ("create_message", 400),
            ("none", 404),
        )
    }
    assert list(grown.values()) == [3, 1, 1, 1]
    one = (("operation", "create_message"),)
    assert after["turnlog_request_seconds_count"][one] == 4
    assert 0 < after["turnlog_request_seconds_sum"][one] < 60
    assert after["turnlog_batch_rows_count"][()] - before["turnlog_batch_rows_count"][()] == 4
    assert after["turnlog_batch_rows_sum"][()] - before["turnlog_batch_rows_sum"][()] == 10
    assert after["turnlog_batch_rows_bucket"][(("le", "+Inf"),)] == after["turnlog_batch_rows_count"][()]
    assert after["turnlog_commit_seconds_sum"][()] > 0
    assert after["turnlog_queue_rows"][()] == 0
    assert after["turnlog_open_connections"][()] == 1
    assert after["turnlog_store_up"][()] == 1
    assert after["turnlog_store_bytes"][()] > 0
    if store_kind == "sqlite":  # the WAL of a PostgreSQL server is nobody's in particular
        assert after["turnlog_store_wal_bytes"][()] > 0
    assert after["process_resident_memory_bytes"][()] > 0


def test_no_caller_can_make_the_metrics_grow_without_end(server: Server, key: Key) -> None:
    """L01: labels come from the table of operations and the list of statuses, never from a request."""
    with server.client(key) as client:
        for n in range(30):
            client.get(f"/{CANARY}-{n}")
            client.request(f"M{n}", "/livez")
        operations = {labels[0][1] for labels in _samples(client)["turnlog_requests_total"]}
        assert CANARY not in client.get("/metrics").text
    assert len(operations) < 30


def test_what_is_refused_below_the_application_is_counted_too(server: Server) -> None:
    with server.client() as client:
        before = _requests(_samples(client), "unparsed", 400)
        exchange(server, request())
        assert _requests(_samples(client), "unparsed", 400) == before + 1


def test_the_log_is_one_object_a_line_with_the_request_id(start: Callable[..., Server]) -> None:
    """L01: nothing a caller sends can forge a line, or what a terminal makes of it."""
    server = start("--config", "/dev/null", environment={"TURNLOG_LOG_REQUESTS": "all"})
    key = server.create_key("tests")
    hostile = ["\u2028", "%0d%0a{%22event%22:%22forged%22}", "%1b[2J", "\x85", "%00", "a" * 7000]
    with server.client(key) as client:
        create_conversation(client, "c\r\n{}\x1b[2J\u2028")
        ids = [client.get(f"/{text}?externalId={text}").headers["x-request-id"] for text in hostile]
        ids.append(client.get("/v1/health", headers={"asapp-api-id": '"}' + "x" * 5000}).headers["x-request-id"])
        raw = request(b"GET /livez HTTP/1.1", HOST, b'X-Forged: \r{"event":"forged"}')
        ids += [headers["x-request-id"] for _, headers, _ in exchange(server, raw)]
        wait_for(lambda: {event.get("request_id") for event in server.log} >= set(ids))
    for line in server.log_lines:
        event = json.loads(line)
        assert {"time", "level", "event"} <= set(event)
        assert event["event"] != "forged"
        assert line.isprintable()
        assert len(line) < 10_000


def test_no_text_and_no_secret_is_in_log_metrics_or_errors(start: Callable[..., Server]) -> None:
    """L02: a canary in every place where a caller can put one, over every operation and every kind of refusal."""
    server = start(environment={"TURNLOG_LOG_REQUESTS": "all", "TURNLOG_LOG_LEVEL": "debug"})
    key = server.create_key("tests")
    seen: list[str] = []
    with server.client(key) as client:
        conversation_id = create_conversation(client, CANARY, metadata={CANARY: CANARY})
        one = f"{V1}/conversations/{conversation_id}"
        body = message(CANARY, sender={"role": "agent", "externalId": CANARY})
        for refused in (
            body | {"timestamp": CANARY},
            body | {"sender": {"role": CANARY, "externalId": CANARY}},
            body | {"sender": CANARY},
            body | {"text": [CANARY]},
            body | {"text": f"{CANARY}\0"},
            {CANARY: CANARY},
            CANARY,
        ):
            seen += [client.post(f"{one}/messages{end}", json=refused).text for end in ("", "/batch")]
            seen.append(client.post(f"{one}/messages/batch", json={"messages": [body, refused]}).text)
        answers = [
            client.post(f"{one}/messages", json=body, headers={"idempotency-key": CANARY}),
            client.post(f"{one}/messages", json=message(), headers={"idempotency-key": CANARY}),
            client.post(f"{one}/messages", content=f'{{"text": "{CANARY}", {CANARY}'),
            client.post(f"{one}/messages", content=CANARY, headers={"content-type": CANARY}),
            client.post(f"{one}/authenticate", json={"customerExternalId": CANARY, "auth": {"token": CANARY}}),
            client.post(f"{one}/authenticate", json={"customerExternalId": CANARY, "auth": CANARY}),
            client.get(f"{one}/messages", params={"limit": CANARY}),
            client.get(f"{one}/messages", params={"after": CANARY}),
            client.get(f"/{CANARY}"),
            client.get("/v1/health", headers={"asapp-api-secret": CANARY}),
            client.get("/v1/health", headers={"asapp-api-id": CANARY, "asapp-api-secret": CANARY}),
            client.get("/metrics"),
        ]
        assert {answer.status_code for answer in answers} >= {200, 204, 400, 401, 404, 422}
        seen += [answer.text for answer in answers]
        seen += [
            raw[2].decode()
            for raw in exchange(server, request(b"GET /livez HTTP/1.1", HOST, b"X: " + CANARY.encode() + b"\0"))
        ]
    assert server.stop() == 0
    assert len(server.log_lines) > 20
    for text in (*seen, *server.log_lines):
        assert CANARY not in text
        assert key.secret not in text
