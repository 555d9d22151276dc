"""``turnlog keys``: create, list, revoke and rotate keys, also while a server runs on the store."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from turnlog import instants, secret
from turnlog.cli.settings import file_option, json_option, settings, store_option, store_to_make
from turnlog.errors import SettingError
from turnlog.model import DEFAULT_PERMISSIONS, MAX_NAME_CHARS, PERMISSIONS, ApiKey, Permission, SecretHash
from turnlog.store.connect import open_keys, shown
from turnlog.store.protocol import KeyRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_ACCOUNT = "default"
DEFAULT_GRACE = "24h"
_DURATION = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)
_RATE = re.compile(r"([0-9]{1,7})/s", re.ASCII)
_NAME = re.compile(r"[^\x00-\x1f\x7f]+")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def now_us() -> int:
    """The wall clock."""
    return time.time_ns() // 1000


def new_key(
    name: str,
    account: str,
    permissions: tuple[Permission, ...] = DEFAULT_PERMISSIONS,
    *,
    rate_per_s: float | None = None,
    refuse_repeats: bool = False,
    expires_at: int | None = None,
) -> tuple[KeyRecord, str]:
    """A key and its secret, not yet kept anywhere."""
    created_at = now_us()
    text = secret.new_secret(secrets.randbits)
    key = ApiKey(
        secret.new_key_id(secrets.randbits),
        name,
        account,
        permissions,
        created_at,
        rate_per_s,
        refuse_repeats,
        expires_at,
    )
    return KeyRecord(key, (SecretHash(secret.digest(text.encode()), created_at),)), text


@click.group()
def keys() -> None:
    """Create, list, revoke and rotate API keys."""


@keys.command()
@click.argument("name")
@click.option("--account", default=DEFAULT_ACCOUNT, show_default=True, help="Whose data the key opens.")
@click.option(
    "--permission",
    "permissions",
    multiple=True,
    type=click.Choice(PERMISSIONS),
    help="May be given several times.  [default: all but feed and admin]",
)
@click.option("--rate", metavar="N/s", help="At most N requests a second.  [default: no limit]")
@click.option("--expires", metavar="WHEN", help="A time such as 2027-01-31T00:00:00Z, or a span such as 90d or 12h.")
@click.option("--refuse-repeats", is_flag=True, help="Answer an exact repeat of a message with 409 (see docs/api.md).")
@file_option
@store_option
@json_option
def create(
    name: str,
    account: str,
    permissions: tuple[Permission, ...],
    rate: str | None,
    expires: str | None,
    file: str | None,
    store: str | None,
    *,
    refuse_repeats: bool,
    as_json: bool,
) -> None:
    """Create a key called NAME and show its secret, this once."""
    for what, text in (("name", name), ("account", account)):
        if not _NAME.fullmatch(text) or len(text) > MAX_NAME_CHARS:
            raise click.UsageError(f"{what}: expected 1 to {MAX_NAME_CHARS} printable characters")
    record, text = new_key(
        name,
        account,
        tuple(dict.fromkeys(permissions)) or DEFAULT_PERMISSIONS,
        rate_per_s=None if rate is None else _rate_per_s(rate),
        refuse_repeats=refuse_repeats,
        expires_at=None if expires is None else _future(expires, "--expires"),
    )
    url = store_to_make(settings(file, store=store))

    async def add() -> None:
        async with open_keys(url, create=True) as kept:
            await kept.add_key(record)

    asyncio.run(add())
    _show_secret(record.key, text, as_json=as_json)
    if not as_json:
        click.echo(f"The key is kept in {shown(url)}, and good for the server that runs on it.", err=True)


@keys.command("list")
@file_option
@store_option
@json_option
def list_(file: str | None, store: str | None, *, as_json: bool) -> None:
    """List every key, without secrets."""

    async def read() -> list[KeyRecord]:
        async with open_keys(settings(file, store=store).config.store) as kept:
            return await kept.keys()

    records = asyncio.run(read())
    views = [_view(record.key) | {"secrets": _live(record)} for record in records]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(views)).decode())
        return
    for view in views:
        rate = "" if view["rate"] is None else f"  {view['rate']}"
        ends = "" if view["expiresAt"] is None else f"  until {view['expiresAt']}"
        state = "revoked" if view["revokedAt"] else "expired" if _is_past(view["expiresAt"]) else "live"
        click.echo(
            f"{view['id']}  {state:<7}  {view['account']}/{view['name']}  {' '.join(view['permissions'])}{rate}{ends}"
        )


@keys.command()
@click.argument("key")
@file_option
@store_option
@json_option
def revoke(key: str, file: str | None, store: str | None, *, as_json: bool) -> None:
    """End KEY, given by its id or its name; a running server refuses it within a second."""

    async def end() -> ApiKey:
        async with open_keys(settings(file, store=store).config.store) as kept:
            found = _find(await kept.keys(), key).key
            await kept.revoke_key(found.id, now_us())
            return _find(await kept.keys(), found.id).key

    found = asyncio.run(end())
    if as_json:
        click.echo(msgspec.json.encode(_view(found)).decode())
    else:
        click.echo(f"revoked {found.id} ({found.account}/{found.name})")


@keys.command()
@click.argument("key")
@click.option(
    "--grace",
    default=DEFAULT_GRACE,
    show_default=True,
    help="How long the old secret still works: 0s ends it.",
)
@file_option
@store_option
@json_option
def rotate(key: str, grace: str, file: str | None, store: str | None, *, as_json: bool) -> None:
    """Give KEY, named by its id or its name, a new secret, and show it this once."""
    text = secret.new_secret(secrets.randbits)
    now = now_us()
    old_expire_at = now + span_us(grace, "--grace")

    async def add_secret() -> ApiKey:
        async with open_keys(settings(file, store=store).config.store) as kept:
            found = _find(await kept.keys(), key).key
            if found.revoked_at is not None:
                raise SettingError(f"the key {found.id} is revoked: create a new one")
            await kept.rotate_key(found.id, SecretHash(secret.digest(text.encode()), now), old_expire_at)
            return found

    found = asyncio.run(add_secret())
    _show_secret(found, text, as_json=as_json, oldSecretExpiresAt=instants.render(old_expire_at))


def _find(records: Sequence[KeyRecord], wanted: str) -> KeyRecord:
    by_id = [record for record in records if record.key.id == wanted]
    found = by_id or [record for record in records if record.key.name == wanted and record.key.revoked_at is None]
    found = found or [record for record in records if record.key.name == wanted]
    if not found:
        raise SettingError(f"no key has the id or the name {wanted!r}")
    if len(found) > 1:
        raise SettingError(f"{len(found)} keys have the name {wanted!r}: name one by its id")
    return found[0]


def _live(record: KeyRecord) -> int:
    return sum(1 for held in record.secrets if held.expires_at is None or held.expires_at > now_us())


def _is_past(text: str | None) -> bool:
    return text is not None and instants.parse(text) <= now_us()


def _view(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "account": key.account,
        "permissions": list(key.permissions),
        "rate": None if key.rate_per_s is None else f"{key.rate_per_s:g}/s",
        "refuseRepeats": key.refuse_repeats,
        "createdAt": instants.render(key.created_at),
        "expiresAt": None if key.expires_at is None else instants.render(key.expires_at),
        "revokedAt": None if key.revoked_at is None else instants.render(key.revoked_at),
    }


def _show_secret(key: ApiKey, text: str, *, as_json: bool, **more: str) -> None:
    if as_json:
        view = {"id": key.id, "secret": text} | _view(key) | more
        click.echo(msgspec.json.encode(view).decode())
        return
    click.echo(f"asapp-api-id:     {key.id}")
    click.echo(f"asapp-api-secret: {text}")
    click.echo("The secret is shown only now: keep it safe.", err=True)


def _rate_per_s(text: str) -> float:
    match = _RATE.fullmatch(text)
    if match is None or int(match[1]) < 1:
        raise click.UsageError(f"--rate {text!r}: expected a whole number of requests a second, as in 50/s")
    return float(match[1])


def span_us(text: str, flag: str) -> int:
    """The span that a flag names, in microseconds. Raises UsageError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise click.UsageError(f"{flag} {text!r}: expected a span such as 30m, 12h or 90d")
    return int(match[1]) * _SECONDS[match[2]] * instants.US_PER_S


def _future(text: str, flag: str) -> int:
    now = now_us()
    if _DURATION.fullmatch(text):
        at = now + span_us(text, flag)
    else:
        try:
            at = instants.parse(text)
        except ValueError:
            raise click.UsageError(f"{flag} {text!r}: expected {instants.EXPECTED}, or a span such as 90d") from None
    if at <= now or at > instants.LATEST:
        raise click.UsageError(f"{flag} {text!r}: expected a time to come, before the year 10000")
    return at
