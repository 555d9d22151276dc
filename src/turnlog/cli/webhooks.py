"""``turnlog webhooks``: an account's webhooks, made, looked into and mended beside a running server."""

from __future__ import annotations

import asyncio
import re
import secrets
import sys
from contextlib import asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
import msgspec
from msgspec import UNSET, UnsetType

from turnlog import instants
from turnlog.cli.keys import DEFAULT_ACCOUNT, DEFAULT_GRACE, now_us, span_us
from turnlog.cli.sender import LateSender
from turnlog.cli.settings import file_option, json_option, settings, store_option
from turnlog.errors import Error, SettingError
from turnlog.feed import BEGINNING, NOW, Feed
from turnlog.http.representations import attempt_view, failed_view, webhook_view
from turnlog.ids import Ulids
from turnlog.model import EVENT_TYPES, EventType
from turnlog.store.connect import open_keys
from turnlog.store.protocol import StoreFailedError, StoreUnavailableError, StoreUncertainError
from turnlog.webhooks import MAX_OLD_SECRET_S, NewWebhook, Replay, WebhookChange, Webhooks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from turnlog.webhooks import Failed, WebhookState

T = TypeVar("T")
_PAGE = 1000
_WHERE = re.compile(r"\[(?:Path|Query) '/?([^']*)'\] ")


class _Home(NamedTuple):
    """Where a command's webhooks are: the settings that find the store, and the account."""

    file: str | None
    store: str | None
    account: str

    def run(self, work: Callable[[Webhooks, str], Awaitable[T]]) -> T:
        """What ``work`` comes to, asked with the webhooks and the account. Raises SettingError for every refusal."""

        async def carry_out() -> T:
            async with self._open() as webhooks:
                return await work(webhooks, self.account)

        try:
            return asyncio.run(carry_out())
        except Error as error:
            if isinstance(error.__cause__, (StoreUnavailableError, StoreUncertainError, StoreFailedError)):
                raise error.__cause__ from None
            raise SettingError(_WHERE.sub(r"\1: ", error.message)) from None

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Webhooks]:
        config = settings(self.file, store=self.store).config
        private = config.allow_private_webhooks
        async with open_keys(config.store) as kept:
            sender = LateSender(now_us, allow_private=private)
            ids = Ulids(now_us, secrets.randbits)
            try:
                yield Webhooks(kept, Feed(kept), sender, ids, now_us, secrets.randbits, allow_private=private)
            finally:
                await sender.close()


def _at_home(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags that say where its webhooks are, as its ``home``, and ``--json``."""

    @click.option("--account", default=DEFAULT_ACCOUNT, show_default=True, help="Whose webhooks.")
    @file_option
    @store_option
    @json_option
    @wraps(command)
    def with_home(*given: Any, file: str | None, store: str | None, account: str, **more: Any) -> None:
        command(*given, home=_Home(file, store, account), **more)

    return with_home


_types_option = click.option(
    "--type", "types", multiple=True, type=click.Choice(EVENT_TYPES), help="May be given several times.  [default: all]"
)
_secret_option = click.option(
    "--secret", metavar="SECRET", help="A signing secret of your own, whsec_…; - reads it from standard input."
)


@click.group()
def webhooks() -> None:
    """Create, list, change, test and replay webhooks."""


@webhooks.command()
@click.argument("url")
@_types_option
@click.option("--description", default="", help="For people to read.")
@click.option(
    "--after", default=NOW, show_default=True, help=f"The cursor to begin behind, or {BEGINNING}: with the first event."
)
@_secret_option
@_at_home
def create(
    url: str,
    types: tuple[EventType, ...],
    description: str,
    after: str,
    secret: str | None,
    *,
    home: _Home,
    as_json: bool,
) -> None:
    """Create a webhook that sends events to URL, and show its secret, this once."""
    new = NewWebhook(url, types or None, description, after, _secret(secret))
    _show_secret(home.run(lambda kept, account: kept.create_webhook(account, new)), as_json=as_json)


@webhooks.command("list")
@_at_home
def list_(*, home: _Home, as_json: bool) -> None:
    """List the account's webhooks, without secrets."""
    found = home.run(lambda kept, account: kept.list_webhooks(account))
    if as_json:
        _print_json([webhook_view(state) for state in found])
        return
    for state in found:
        webhook = state.webhook
        waiting = f"  {_conversations(state)} wait" if state.blocked else ""
        types = "all" if webhook.types is None else " ".join(webhook.types)
        click.echo(f"{webhook.id}  {_enabled(state):<8}  {webhook.url}  {types}{waiting}")


@webhooks.command()
@click.argument("webhook_id", metavar="WEBHOOK")
@_at_home
def show(webhook_id: str, *, home: _Home, as_json: bool) -> None:
    """Show WEBHOOK, given by its id, and how far it has got."""
    _show(home.run(lambda kept, account: kept.read_webhook(account, webhook_id)), as_json=as_json)


@webhooks.command()
@click.argument("webhook_id", metavar="WEBHOOK")
@click.option("--url", help="Where to send events.")
@_types_option
@click.option("--all-types", is_flag=True, help="Send events of every type.")
@click.option("--description", help="For people to read.")
@click.option("--enable/--disable", "enabled", default=None, help="Whether events are to be sent.")
@_at_home
def change(
    webhook_id: str,
    url: str | None,
    types: tuple[EventType, ...],
    description: str | None,
    enabled: bool | None,  # noqa: FBT001 - click's, and given by name
    *,
    all_types: bool,
    home: _Home,
    as_json: bool,
) -> None:
    """Change what is given of WEBHOOK; enabled again, it goes on where it stopped."""
    if types and all_types:
        raise click.UsageError("--type and --all-types: expected one of them")
    wanted: tuple[EventType, ...] | UnsetType | None = None if all_types else types or UNSET
    changes = WebhookChange(_given(url), wanted, _given(description), _given(enabled))
    if changes == WebhookChange():
        raise click.UsageError("expected something to change")
    _show(home.run(lambda kept, account: kept.change_webhook(account, webhook_id, changes)), as_json=as_json)


@webhooks.command()
@click.argument("webhook_id", metavar="WEBHOOK")
@_at_home
def delete(webhook_id: str, *, home: _Home, as_json: bool) -> None:
    """Forget WEBHOOK with everything that waits or has failed."""
    home.run(lambda kept, account: kept.delete_webhook(account, webhook_id))
    if as_json:
        _print_json({"id": webhook_id, "deleted": True})
    else:
        click.echo(f"deleted {webhook_id}")


@webhooks.command()
@click.argument("webhook_id", metavar="WEBHOOK")
@click.option(
    "--grace", default=DEFAULT_GRACE, show_default=True, help="How long the old secret still signs: 0s ends it."
)
@_secret_option
@_at_home
def rotate(webhook_id: str, grace: str, secret: str | None, *, home: _Home, as_json: bool) -> None:
    """Give WEBHOOK a new secret, and show it this once."""
    old_ends_s = span_us(grace, "--grace") // instants.US_PER_S
    if old_ends_s > MAX_OLD_SECRET_S:
        raise click.UsageError(f"--grace {grace!r}: expected at most {MAX_OLD_SECRET_S // 86_400}d")
    given = _secret(secret)
    rotated = home.run(lambda kept, account: kept.rotate_webhook(account, webhook_id, given, old_ends_s))
    _show_secret(rotated, as_json=as_json)


@webhooks.command()
@click.argument("webhook_id", metavar="WEBHOOK")
@_at_home
def test(webhook_id: str, *, home: _Home, as_json: bool) -> None:
    """Send one test event to WEBHOOK now and show what came back; the status is 0 where it was taken."""
    sent = home.run(lambda kept, account: kept.test_webhook(account, webhook_id))
    if as_json:
        _print_json(attempt_view(sent))
    else:
        answer = f"not taken: {sent.error}" if sent.status is None else f"answered {sent.status}"
        click.echo(f"{answer}, after {sent.seconds:.3f} s")
        if sent.excerpt:
            click.echo(sent.excerpt)
    if not sent.delivered:
        sys.exit(1)


@webhooks.command()
@click.argument("webhook_id", metavar="WEBHOOK")
@_at_home
def failed(webhook_id: str, *, home: _Home, as_json: bool) -> None:
    """List the events that WEBHOOK has given up, in the order in which they were recorded."""

    async def read(kept: Webhooks, account: str) -> list[Failed]:
        pages = [await kept.list_failed_events(account, webhook_id, limit=_PAGE)]
        while (after := pages[-1].next_cursor) is not None:
            pages.append(await kept.list_failed_events(account, webhook_id, limit=_PAGE, after=after))
        return pages

    views = [item for page in home.run(read) for item in failed_view(page).items]
    if as_json:
        _print_json(views)
        return
    for view in views:
        again = "  to be sent again" if view.replayed else ""
        click.echo(
            f"{view.id}  {view.type}  {view.conversation_id}  given up {view.failed_timestamp} "
            f"after {view.attempts} attempts: {view.error}{again}"
        )


@webhooks.command()
@click.argument("webhook_id", metavar="WEBHOOK")
@click.option("--failed", "all_failed", is_flag=True, help="Everything that was given up.")
@click.option("--event", "events", multiple=True, metavar="ID", help="Of what was given up, this; several times.")
@click.option("--after", metavar="CURSOR", help=f"Everything behind a cursor, or from the {BEGINNING}.")
@click.option("--since", metavar="WHEN", help="Everything from a time on, such as 2027-01-31T00:00:00Z.")
@_at_home
def replay(
    webhook_id: str,
    events: tuple[str, ...],
    after: str | None,
    since: str | None,
    *,
    all_failed: bool,
    home: _Home,
    as_json: bool,
) -> None:
    """Have WEBHOOK send events again."""
    if [all_failed, bool(events), after is not None, since is not None].count(True) != 1:
        raise click.UsageError("expected one of --failed, --event, --after, --since")
    what = Replay(all_failed, events or None, after, None if since is None else _instant(since, "--since"))
    done = home.run(lambda kept, account: kept.replay_webhook(account, webhook_id, what))
    if as_json:
        _print_json({"replayed": done} if isinstance(done, int) else {"cursor": done})
    else:
        click.echo(f"{done} events are sent again" if isinstance(done, int) else f"it goes on behind {done}")


def _given(value: T | None) -> T | UnsetType:
    return UNSET if value is None else value


def _secret(given: str | None) -> str | None:
    return sys.stdin.readline().strip() if given == "-" else given


def _instant(text: str, flag: str) -> int:
    try:
        return instants.parse(text)
    except ValueError:
        raise click.UsageError(f"{flag} {text!r}: expected {instants.EXPECTED}") from None


def _print_json(view: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(view)).decode())


def _enabled(state: WebhookState) -> str:
    return "enabled" if state.webhook.disabled is None else "disabled"


def _show(state: WebhookState, *, as_json: bool) -> None:
    if as_json:
        _print_json(webhook_view(state))
        return
    webhook = state.webhook
    why = "" if webhook.disabled is None else f": {webhook.disabled}"
    rows = {
        "id": webhook.id,
        "url": webhook.url,
        "types": "all" if webhook.types is None else " ".join(webhook.types),
        "description": webhook.description,
        "state": f"{_enabled(state)}{why}",
        "created": instants.render(webhook.created_at),
        "updated": instants.render(webhook.updated_at),
        "cursor": state.cursor,
        "waiting": _waiting(state),
        "secrets": ", ".join(
            "good" if one.expires_at is None else f"good until {instants.render(one.expires_at)}"
            for one in webhook.secrets
        ),
    }
    for name, value in rows.items():
        click.echo(f"{name + ':':<13}{value}")


def _conversations(state: WebhookState) -> str:
    return f"{state.blocked} conversation{'' if state.blocked == 1 else 's'}"


def _waiting(state: WebhookState) -> str:
    if state.next_at is None:
        return _conversations(state)
    return f"{_conversations(state)} until {instants.render(state.next_at)}: {state.error}"


def _show_secret(state: WebhookState, *, as_json: bool) -> None:
    if as_json:
        _print_json(webhook_view(state, with_secret=True))
        return
    _show(state, as_json=False)
    click.echo(f"{'secret:':<13}{state.webhook.secrets[-1].secret}")
    click.echo("The secret is shown only now: keep it safe.", err=True)
