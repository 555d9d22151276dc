"""I03. Three accounts do as they like, with each other's ids, external ids, keys and cursors: each sees its own."""

from __future__ import annotations

import itertools
import random
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import V1, Server, conversation, error_of, make_key, message
from tests.test_changes import walk
from turnlog.model import PERMISSIONS

if TYPE_CHECKING:
    import httpx

ACCOUNTS = 3
ACTIONS = 250
EXTERNAL_IDS = ("alpha", "beta", "gamma", "délta ☃", "")
GIVEN_IDS = ("SAME1", "SAME2", "SAME3")
KEYS = ("first", "second", "third")
AT = "2021-11-23T12:13:14.555Z"
BY_EXTERNAL_ID = f"{V1}/conversation/messages"
_runs = itertools.count(1)


@dataclass
class Account:
    """What one account must see: the model."""

    client: httpx.Client
    prefix: str
    conversations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By id."""
    messages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By the conversation's id, as they were sent."""
    keyed: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """By idempotency key: the conversation, the text, the id that was answered."""
    log: list[tuple[str, str]] = field(default_factory=list)
    """Type and id of every event."""

    def known(self, external_id: str) -> str | None:
        return next((one for one, kept in self.conversations.items() if kept["externalId"] == external_id), None)


class World:
    """The accounts, and a seed's worth of actions; ``ids`` and ``cursors`` are everybody's, for everybody to try."""

    def __init__(self, accounts: list[Account], seed: int) -> None:
        self.accounts = accounts
        self.random = random.Random(seed)  # noqa: S311 - a test that can be repeated
        self.ids = ["NOSUCH", *GIVEN_IDS]
        self.message_ids = ["NOSUCH"]
        self.cursors: list[str] = []

    def act(self, number: int) -> None:
        account = self.random.choice(self.accounts)
        actions = (self.create, self.create, self.say, self.say, self.say_keyed, self.say_all,
                   self.read, self.list, self.find, self.list_by_external_id, self.page, self.read_message)  # fmt: skip
        self.random.choice(actions)(account, number)

    def create(self, account: Account, number: int) -> None:
        external_id = account.prefix + self.random.choice(EXTERNAL_IDS)
        known = account.known(external_id)
        changes: dict[str, Any] = {}
        if self.random.random() < 0.3:
            changes["id"] = self.random.choice(self.ids)
        if self.random.random() < 0.4:
            changes["metadata"] = {"number": str(number)}
        answer = account.client.post(f"{V1}/conversations", json=conversation(external_id, **changes))
        wanted = changes.get("id")
        if wanted is not None and known is not None and wanted != known:
            error_of(answer, "409-01")
            return
        if wanted is not None and known is None and wanted in account.conversations:
            error_of(answer, "409-01")
            return
        assert answer.status_code == 200, answer.text
        made = answer.json()["id"]
        if known is None:
            assert made == wanted or (wanted is None and made not in self.ids)
            self.ids.append(made)
            account.conversations[made] = {"externalId": external_id, "metadata": changes.get("metadata")}
            account.messages[made] = []
            account.log.append(("conversation.created", made))
            return
        assert made == known
        kept = account.conversations[made]
        if changes.get("metadata") is not None and kept["metadata"] != changes["metadata"]:
            kept["metadata"] = changes["metadata"]
            account.log.append(("conversation.updated", made))

    def say(self, account: Account, number: int) -> None:
        one = self.random.choice(self.ids)
        answer = account.client.post(f"{V1}/conversations/{one}/messages", json=message(f"{account.prefix}{number}"))
        self._said(account, one, answer, [f"{account.prefix}{number}"])

    def say_all(self, account: Account, number: int) -> None:
        one = self.random.choice(self.ids)
        texts = [f"{account.prefix}{number}-{n}" for n in range(3)]
        body = {"messages": [message(text) for text in texts]}
        answer = account.client.post(f"{V1}/conversations/{one}/messages/batch", json=body)
        self._said(account, one, answer, texts)

    def _said(self, account: Account, one: str, answer: httpx.Response, texts: list[str]) -> None:
        if one not in account.conversations:
            error_of(answer, "404-01")
            return
        assert answer.status_code == 200, answer.text
        ids = answer.json().get("ids") or [answer.json()["id"]]
        assert not set(ids) & set(self.message_ids)
        self.message_ids += ids
        account.messages[one] += [{"messageId": made, "text": text} for made, text in zip(ids, texts, strict=True)]
        account.log += [("message.created", made) for made in ids]

    def say_keyed(self, account: Account, number: int) -> None:
        """The same idempotency keys in every account: each is its account's own."""
        one, name = self.random.choice(self.ids), self.random.choice(KEYS)
        text = f"{account.prefix}keyed {number % 2}"
        answer = account.client.post(
            f"{V1}/conversations/{one}/messages", json=message(text), headers={"idempotency-key": name}
        )
        used = account.keyed.get(name)
        if one not in account.conversations:
            error_of(answer, "404-01")
        elif used is None:
            self._said(account, one, answer, [text])
            account.keyed[name] = (one, text, answer.json()["id"])
        elif used[:2] == (one, text):
            assert (answer.status_code, answer.json()) == (200, {"id": used[2]})
        else:
            error_of(answer, "422-02")

    def read(self, account: Account, _: int) -> None:
        one = self.random.choice(self.ids)
        answer = account.client.get(f"{V1}/conversations/{one}")
        if one not in account.conversations:
            error_of(answer, "404-01")
            return
        self._matches(account, one, answer.json())

    @staticmethod
    def _matches(account: Account, one: str, found: dict[str, Any]) -> None:
        kept = account.conversations[one]
        assert (found["id"], found["externalId"]) == (one, kept["externalId"])
        assert found.get("metadata") == kept["metadata"]

    def find(self, account: Account, _: int) -> None:
        external_id = self._external_id(account)
        answer = account.client.get(f"{V1}/conversations", params={"externalId": external_id})
        known = account.known(external_id)
        items = answer.json()["items"]
        assert len(items) == (known is not None)
        if known is not None:
            self._matches(account, known, items[0])

    def list(self, account: Account, _: int) -> None:
        one = self.random.choice(self.ids)
        self._listed(account, one, account.client.get(f"{V1}/conversations/{one}/messages"))

    def list_by_external_id(self, account: Account, _: int) -> None:
        external_id = self._external_id(account)
        answer = account.client.get(BY_EXTERNAL_ID, params={"externalId": external_id})
        self._listed(account, account.known(external_id), answer)

    def _external_id(self, account: Account) -> str:
        return account.prefix + self.random.choice(EXTERNAL_IDS)

    @staticmethod
    def _listed(account: Account, one: str | None, answer: httpx.Response) -> None:
        if one not in account.conversations:
            error_of(answer, "404-01")
            return
        found = [{name: item[name] for name in ("messageId", "text")} for item in answer.json()["items"]]
        assert found == account.messages[one]

    def page(self, account: Account, _: int) -> None:
        """With a cursor of anybody's: what is told is one's own, or nothing."""
        one = self.random.choice(self.ids)
        after = {"after": self.random.choice(self.cursors)} if self.cursors and self.random.random() < 0.5 else {}
        answer = account.client.get(f"{V1}/conversations/{one}/messages", params={"limit": 2, **after})
        if one not in account.conversations:
            assert answer.status_code in (400, 404)
        elif answer.status_code != 400:
            own = [kept["messageId"] for kept in account.messages[one]]
            assert {item["messageId"] for item in answer.json()["items"]} <= set(own)
            if "nextCursor" in answer.json():
                self.cursors.append(answer.json()["nextCursor"])

    def read_message(self, account: Account, _: int) -> None:
        one, sought = self.random.choice(self.ids), self.random.choice(self.message_ids)
        answer = account.client.get(f"{V1}/conversations/{one}/messages/{sought}")
        own = [kept for kept in account.messages.get(one, ()) if kept["messageId"] == sought]
        if own:
            assert answer.json()["text"] == own[0]["text"]
        else:
            error_of(answer, "404-01")


@pytest.mark.parametrize("seed", [1, 2])
def test_each_account_sees_exactly_its_own(server: Server, seed: int) -> None:
    """I03, I01: a seed's actions against a model of each account; at the end, the whole of what each account sees."""
    run = next(_runs)
    prefix = f"world {run} "  # the same external ids in all accounts
    with ExitStack() as stack:
        keys = [make_key(server.url, "actor", f"world-{run}-{n}", tuple(PERMISSIONS)) for n in range(ACCOUNTS)]
        accounts = [Account(stack.enter_context(server.client(key)), prefix) for key in keys]
        world = World(accounts, seed)
        for number in range(ACTIONS):
            world.act(number)
        assert all(account.log for account in accounts)
        for account in accounts:
            for one in account.conversations:
                world._matches(account, one, account.client.get(f"{V1}/conversations/{one}").json())
                world._listed(account, one, account.client.get(f"{V1}/conversations/{one}/messages"))
            told = [(event["type"], (event.get("message") or {}).get("messageId") or event["conversationId"])
                    for event in walk(account.client, 1000)]  # fmt: skip
            assert told == account.log
