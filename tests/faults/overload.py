"""O01, O02: several times what the server can take, by callers that do not wait for it, retrying and not.

Two kinds of request. Of ``batches`` of 300 messages, refusing one costs a hundredth of recording it: what is too much
is refused, and the figures of the fault list hold for it. Refusing a single ``message`` costs half as much as recording
it, whoever does it in one process: so those wait in their sockets, unread, and their number is that of the
connections. Everything is compared with what the same server did just before and after.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tests.faults.ledger import Entry
from tests.faults.open_loop import Asked, Phase, Plan, run
from tests.harness import V1, Server, create_conversation
from tests.stores import rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.faults.open_loop import Seen

Kind = Literal["batches", "messages"]
BATCH = 300
CONVERSATIONS = 50
CALLERS = {"batches": 8, "messages": 128}
"""Of the closed loop that finds out what the server can take."""
CONNECTIONS = {"batches": 2000, "messages": 1500}
ACCEPTED_S = 0.5
REFUSED_S = 0.05
RECOVERED_S = 5.0
LEAST = {2: 0.9, 5: 0.9, 10: 0.8}
"""The least goodput at a multiple of the capacity, as a share of it."""
_MESSAGE = {
    "text": "# Hello, I would like to upgrade my plan.",
    "sender": {"role": "agent", "externalId": "a"},
    "timestamp": "2021-11-23T12:13:14.555Z",
}


def percentile(values: Iterable[float], share: float) -> float:
    """In milliseconds; of nothing, 0."""
    ordered = sorted(values)
    return round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))], 1) if ordered else 0.0


def _share(asked: list[Asked], within_s: float, *, answered: bool) -> float:
    good = sum((a.answered_s if answered else a.waited_s) <= within_s for a in asked)
    return round(good / len(asked), 4) if asked else 1.0


@dataclass
class Place:
    """A server under load: what is sent to it, and what its callers were told."""

    server: Server
    kind: Kind
    seed: int

    def __post_init__(self) -> None:
        key = self.server.create_key("overload")
        with self.server.client(key) as client:
            conversations = [create_conversation(client, f"overload-{n}") for n in range(CONVERSATIONS)]
        self.body = json.dumps({"messages": [_MESSAGE] * BATCH} if self.kind == "batches" else _MESSAGE)
        fields = {"host": "localhost", **key.headers, "content-type": "application/json"}
        fields["content-length"] = str(len(self.body.replace("#", "0" * 10)))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "idempotency-key: "
        suffix = "/batch" if self.kind == "batches" else ""
        self.heads = [f"POST {V1}/conversations/{one}/messages{suffix} HTTP/1.1\r\n{head}" for one in conversations]
        self.asked: list[Asked] = []
        self.broken = 0
        self.first = 0

    def load(self, phases: list[Phase], *, retries: bool = False) -> Seen:
        self.seed += 1
        plan = Plan(
            port=self.server.port,
            heads=self.heads,
            body=self.body,
            phases=phases,
            connections=CONNECTIONS[self.kind],
            retries=retries,
            first=self.first,
            seed=self.seed,
        )
        seen = run(plan)
        self.asked += seen.asked
        self.first += len(seen.asked)
        self.broken += seen.broken
        return seen

    def capacity(self, seconds: float) -> float:
        """Requests a second that are recorded for callers who wait for each answer."""
        seen = self.load([Phase(seconds, 0, CALLERS[self.kind])])
        return sum(a.status == 200 and a.due_at_s + a.took_s < seconds for a in seen.asked) / seconds

    def problems(self) -> list[str]:
        """INV: what callers were told, against what is stored; and answers that are none of overload."""
        counted = "SELECT substr(text, 1, 10), count(*) FROM message GROUP BY 1"
        stored: Mapping[str, int] = dict(rows(self.server.url, counted))
        size = BATCH if self.kind == "batches" else 1
        wrong: Counter[str] = Counter()
        for asked in self.asked:
            count = stored.get(f"{asked.number:010}", 0)
            acknowledged = json.loads(asked.ids) if asked.status == 200 else {}
            if acknowledged and len(acknowledged.get("ids", [acknowledged.get("id")])) != size:
                wrong["acknowledged with too few ids"] += 1
            if asked.status == 200 and count != size:
                wrong["acknowledged and not stored once"] += 1
            elif asked.code == "503-01" and asked.attempts == 1 and count:
                wrong["refused and stored"] += 1
            elif count not in (0, size):
                wrong["stored in part or twice"] += 1
            if asked.status not in (0, 200, 503) or (asked.status == 503 and asked.code != "503-01"):
                wrong[f"answered {asked.status} {asked.code}"] += 1
            if asked.status == 503 and not asked.retry_after:
                wrong["refused without Retry-After"] += 1
        if self.broken:
            wrong["connections that broke"] = self.broken
        return [f"{what}: {count}" for what, count in wrong.items()]


def overload(
    server: Server, kind: Kind, *, multiples: tuple[int, ...] = (2, 5, 10), seconds: float = 8, seed: int = 1
) -> Entry:
    """O01. The shares of accepted and refused requests that were in time are from sending; see ``waited_p99_ms`` for
    what their callers saw, in whose pools they waited for a connection before.
    """
    place = Place(server, kind, seed)
    place.capacity(1)  # what is new is made ready
    before = place.capacity(seconds / 2)
    figures: dict[str, int | float | str] = {"capacity_per_s": round(before)}
    problems = []
    refusals = 0
    for multiple in multiples:
        seen = place.load([Phase(seconds, multiple * before)])
        after = place.capacity(seconds / 2)
        peak, before = (before + after) / 2, after
        accepted = [a for a in seen.asked if a.status == 200]
        refused = [a for a in seen.asked if a.status == 503]
        refusals += len(refused)
        goodput = sum(a.due_at_s + a.took_s < seconds for a in accepted) / seconds / peak
        p99 = percentile((a.answered_s for a in accepted), 0.99)
        refused_p99 = percentile((a.answered_s for a in refused), 0.99)
        figures |= {
            f"{multiple}x_sent_per_s": round(sum(a.attempts > 0 for a in seen.asked) / seconds),
            f"{multiple}x_goodput": round(goodput, 2),
            f"{multiple}x_accepted_p99_ms": p99,
            f"{multiple}x_accepted_waited_p99_ms": percentile((a.waited_s for a in accepted), 0.99),
            f"{multiple}x_refused": len(refused),
            f"{multiple}x_refused_p50_ms": percentile((a.answered_s for a in refused), 0.5),
            f"{multiple}x_refused_p99_ms": refused_p99,
            f"{multiple}x_refused_within_50_ms": _share(refused, REFUSED_S, answered=True),
            f"{multiple}x_given_up": sum(a.attempts == 0 for a in seen.asked),
        }
        if goodput < LEAST[multiple]:
            problems.append(f"{multiple}x: goodput {goodput:.2f} of the capacity, at least {LEAST[multiple]}")
        if p99 > 1000 * ACCEPTED_S:
            problems.append(f"{multiple}x: 99 % of what was accepted took up to {p99} ms")
        if refused_p99 > 1000 * REFUSED_S:
            problems.append(f"{multiple}x: 99 % of the refusals took up to {refused_p99} ms")
    nothing = "" if refusals or kind == "messages" else "nothing was refused: it was no overload"
    promised = [f"INV {problem}" for problem in place.problems()]
    return Entry(f"O01 overload, open loop, {kind}", _store(server), figures, (*promised, *problems), nothing)


def recovery(
    server: Server,
    kind: Kind,
    *,
    multiples: tuple[int, ...] = (5, 10),
    seconds: float = 8,
    rest: int = 12,
    seed: int = 1,
) -> Entry:
    """O02: retrying callers, half of the capacity, then a multiple of it, then half of it again."""
    place = Place(server, kind, seed)
    place.capacity(1)
    figures: dict[str, int | float | str] = {}
    problems: list[str] = []
    retried = 0
    for multiple in multiples:
        capacity = place.capacity(seconds / 2)
        phases = [Phase(seconds, capacity / 2), Phase(seconds, multiple * capacity), Phase(rest, capacity / 2)]
        seen = place.load(phases, retries=True)
        retried += sum(a.attempts > 1 for a in seen.asked)
        of_it, wrong = _recovered(seen, (capacity + place.capacity(seconds / 2)) / 2, multiple, seconds, rest)
        figures |= {f"{multiple}x_{name}": value for name, value in of_it.items()}
        problems += [f"{multiple}x: {problem}" for problem in wrong]
    promised = [f"INV {problem}" for problem in place.problems()]
    invalid = "" if retried or kind == "messages" else "nobody had to retry"
    measure = f"O02 overload and recovery, retrying callers, {kind}"
    return Entry(measure, _store(server), figures, (*promised, *problems), invalid)


def _recovered(
    seen: Seen, capacity: float, multiple: int, seconds: float, rest: float
) -> tuple[dict[str, int | float | str], list[str]]:
    """Figures and problems of one overload and what came after it."""
    back_at = 2 * seconds

    def p99(begin: float, end: float) -> float:
        due = [a for a in seen.asked if begin <= a.due_at_s < end]
        return percentile((a.took_s if a.status == 200 else 60.0 for a in due), 0.99)

    normal = p99(0, seconds)
    limit = max(3 * normal, 200.0)
    recovered = next((s for s in range(int(rest)) if p99(back_at + s, back_at + rest) <= limit), 99)
    under = [a for a in seen.asked if seconds <= a.due_at_s < back_at]
    answered = sum(a.status == 200 and seconds <= a.due_at_s + a.took_s < back_at for a in seen.asked)
    goodput = answered / seconds / capacity
    refused_p99 = percentile(seen.refusals_s, 0.99)
    figures: dict[str, int | float | str] = {
        "capacity_per_s": round(capacity),
        "attempts_per_s": round(sum(a.attempts for a in under) / seconds),
        "goodput": round(goodput, 2),
        "p99_before_ms": normal,
        "p99_5_s_after_ms": p99(back_at + RECOVERED_S, back_at + rest),
        "normal_again_after_s": recovered,
        "refusals": len(seen.refusals_s),
        "refusals_p50_ms": percentile(seen.refusals_s, 0.5),
        "refusals_p99_ms": refused_p99,
    }
    problems = []
    if goodput < LEAST[multiple]:
        problems.append(f"goodput {goodput:.2f} of the capacity, at least {LEAST[multiple]}")
    if refused_p99 > 1000 * REFUSED_S:
        problems.append(f"99 % of the refusals took up to {refused_p99} ms")
    if recovered > RECOVERED_S:
        problems.append(f"p99 is {p99(back_at + RECOVERED_S, back_at + rest)} ms, {RECOVERED_S} s after the overload")
    return figures, problems


def _store(server: Server) -> str:
    return server.url.partition(":")[0]
