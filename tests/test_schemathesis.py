"""Schemathesis against a real server, from the description that it serves: what is valid is taken, what is not is
refused, and nothing is answered that is not described.

It runs as its own process; this module is also its hooks module, for the hook and the two checks at the end.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis

from tests.harness import REPOSITORY, Key, Server, clean_environment
from turnlog.http.table import TABLE
from turnlog.model import PERMISSIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    Fresh = Callable[..., tuple[Server, Key]]

SCHEMATHESIS = str(Path(sys.executable).with_name("schemathesis"))

CONFIG = """
[generation]
allow-x00 = true       # U+0000 is a refusal of its own
database = "none"      # nothing is remembered from one run for the next
deterministic = true

[phases.coverage]
generate-duplicate-query-parameters = true
unexpected-methods = ["GET", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "QUERY"]

[cache]
enabled = false

# No schema can say which texts of the right shape are cursors of this conversation or this log, whether a key was used
# before with another request, or how many webhooks there are. `refusals_of_valid_data` lets exactly these pass and no
# other 400 or 422.
[[operations]]
include-operation-id = ["listMessages", "listMessagesByExternalId", "listChanges", "listFailedEvents"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "403", "404", "409", "429"]

[[operations]]
include-operation-id = ["createMessage", "createMessages", "createWebhook", "replayWebhook"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "403", "404", "409", "422", "429"]
"""

EVERYTHING = [part for permission in PERMISSIONS for part in ("--permission", permission)]
STANDING_WARNINGS = (
    "unused_openapi_auth",
    "base_url_mismatch",
    "missing_deserializer",
    "unsupported_regex",
    "unresolvable_reference",
    "unmatched_filter",
)
"""Warnings that would mean that something was left out, whatever the data."""


class Run:
    """One run of Schemathesis that found nothing wrong; ``report`` and ``output`` say what it did for that."""

    def __init__(self, server: Server, key: Key, folder: Path, *phases: str, examples: int) -> None:
        (folder / "schemathesis.toml").write_text(CONFIG)
        headers = [part for name, value in key.headers.items() for part in ("--header", f"{name}: {value}")]
        report = folder / "report.json"
        done = subprocess.run(
            [
                SCHEMATHESIS,
                *("--config-file", "schemathesis.toml", "run", f"{server.base}/openapi.json", *headers),
                *("--phases", ",".join(phases), "--checks", "all", "--max-examples", str(examples)),
                *("--report", "json", "--report-json-path", str(report), "--continue-on-failure", "--no-color"),
            ],
            cwd=folder,
            # Its own warnings are its own business: what counts is what it finds.
            env=clean_environment(
                SCHEMATHESIS_HOOKS="tests.test_schemathesis", PYTHONPATH=str(REPOSITORY), PYTHONWARNINGS="default"
            ),
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        self.output = done.stdout
        self.report: dict[str, Any] = json.loads(report.read_text())
        assert self.report["complete"]
        assert self.report["failures"] == self.report["errors"] == []
        assert self.report["operations"]["selected"] == len(TABLE)
        for phase in phases:
            assert self.report["phases"][phase]["status"] == "success", phase
        for warning in STANDING_WARNINGS:
            assert self.report["warnings"][warning] == [], warning

    @property
    def cases(self) -> int:
        """How many requests were judged."""
        return int(self.report["test_cases"]["generated"])

    def accepted(self) -> set[str]:
        """The operations that took something that the description calls valid."""
        rates = self.report["valid_rates"]
        return {name for name, phases in rates.items() if any(phase["accepted"] for phase in phases.values())}


@pytest.fixture
def fresh(start: Callable[..., Server]) -> Fresh:
    """Starts an empty server and makes a key for it: what other tests left would lead the generation elsewhere."""

    def make(*arguments: str, environment: dict[str, str] | None = None) -> tuple[Server, Key]:
        server = start(environment=environment)
        key = server.create_key("tests", *(arguments or EVERYTHING))
        with server.client(key):
            return server, key

    return make


def test_examples_and_the_edges_of_every_schema(fresh: Fresh, tmp_path: Path) -> None:
    """Each example, and each limit, type, missing field, foreign method and missing credential by itself."""
    run = Run(*fresh(), tmp_path, "examples", "coverage", examples=10)
    assert run.cases > 400, run.output
    assert len(run.accepted()) >= 8


def test_generated_requests_valid_and_invalid(fresh: Fresh, tmp_path: Path) -> None:
    """Requests drawn from the schemas, and against them."""
    run = Run(*fresh(), tmp_path, "fuzzing", examples=60)
    assert run.cases > 500, run.output


def test_sequences_of_requests_along_the_links(fresh: Fresh, tmp_path: Path) -> None:
    """What one request creates, the next ones find, page through and add to."""
    run = Run(*fresh(), tmp_path, "stateful", examples=40)
    covered = re.search(r"API Links: +(\d+) covered", run.output)
    assert covered is not None
    assert int(covered[1]) >= 10


def test_a_key_that_may_only_read_and_not_fast(fresh: Fresh, tmp_path: Path) -> None:
    """403 and 429 come as described, with the rate's headers, and from nowhere but where they are described."""
    narrow = fresh("--permission", "read", "--rate", "20/s")
    Run(*narrow, tmp_path, "examples", "coverage", examples=10)
    with narrow[0].client() as anyone:
        counted = anyone.get("/metrics").text
    assert {'status="403"', 'status="429"'} <= set(re.findall(r'status="\d+"', counted))


def test_a_server_that_is_not_lenient(fresh: Fresh, tmp_path: Path) -> None:
    """With leniency off and repeats refused, description and server still agree."""
    strict = fresh(environment={"TURNLOG_LENIENT": "false", "TURNLOG_REFUSE_REPEATS": "true"})
    Run(*strict, tmp_path, "examples", "coverage", "fuzzing", examples=15)


_numbers = itertools.count(1)


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """A valid Idempotency-Key becomes a fresh one: the second request under a key would only meet 422-02.

    Nobody waits for changes, and nothing is sent to where a generated URL may lead. (A stream of changes would never
    end; one comes only where it is asked for by its media type, which Schemathesis does not.)
    """
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    key = (case.headers or {}).get("Idempotency-Key")
    if key and len(key) < 240:
        number = next(_numbers)
        quoted = key.startswith('"')
        case.headers["Idempotency-Key"] = f'{key[:-1]}{number}"' if quoted else f"{key}{number}"
    if case.query and "wait" in case.query:
        case.query["wait"] = "0.01"
    if isinstance(case.body, dict) and "url" in case.body:
        case.body["url"] = "https://receiver.example/"


OF_NO_SCHEMA = re.compile(
    r"\[(?:Query|Path) '/?after'\] not a cursor|\[Path '/events/\d+'\] not an event's id|100 webhooks"
)


@schemathesis.check
def refusals_of_valid_data(_ctx: Any, response: Any, case: Any) -> None:
    """What the description calls valid is refused with 400 or 422 only for what no schema can say."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code not in {400, 422}:
        return
    error = response.json()["error"]
    assert error["code"] == "422-02" or OF_NO_SCHEMA.match(error["message"]), error


@schemathesis.check
def errors_name_their_request(_ctx: Any, response: Any, _case: Any) -> None:
    """In every error, ``requestId`` is what ``x-request-id`` says, and the code starts with the status."""
    if response.status_code >= 400:
        error = response.json()["error"]
        assert response.headers["x-request-id"] == [error["requestId"]]
        assert error["code"].startswith(str(response.status_code))
