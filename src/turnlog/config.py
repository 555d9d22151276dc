"""The settings: one frozen struct, read once from defaults, then file, then environment, then flags.

Whoever needs a setting gets its value; nobody reads the environment again.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from turnlog.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

ENVIRONMENT_PREFIX = "TURNLOG_"
# For the client side of the CLI, and for finding the file: not settings of the server.
_OTHER_VARIABLES = frozenset({"TURNLOG_API_ID", "TURNLOG_API_SECRET", "TURNLOG_URL", "TURNLOG_CONFIG"})
# What Kubernetes and Docker links put into the environment of every neighbour of a service named "turnlog"; they also
# set TURNLOG_PORT to tcp://address:port.
_FOREIGN_PREFIXES = ("TURNLOG_SERVICE_", "TURNLOG_PORT_")

DEFAULT_STORE_FOLDER = Path("data")
Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every setting with its default; docs/settings.md says what each is for."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    store: str = f"sqlite:///{DEFAULT_STORE_FOLDER}/turnlog.db"
    workers: Count = 1
    tls_cert: str = ""
    tls_key: str = ""
    lenient: bool = True
    refuse_repeats: bool = False
    allow_private_webhooks: bool = False
    max_body_bytes: Count = 1024 * 1024
    max_batch_body_bytes: Count = 8 * 1024 * 1024
    max_gathered_bytes: Count = 64 * 1024 * 1024
    max_target_bytes: Count = 8 * 1024
    max_header_bytes: Count = 16 * 1024
    max_headers: Count = 100
    max_connections: Count = 10_000
    max_streams: Count = 5_000
    max_queued_messages: Count = 10_000
    max_queued_characters: Count = 16 * 1024 * 1024
    write_deadline_s: Seconds = 10.0
    header_timeout_s: Seconds = 10.0
    body_timeout_s: Seconds = 15.0
    keep_alive_s: Seconds = 30.0
    write_timeout_s: Seconds = 30.0
    drain_timeout_s: Seconds = 8.0
    stream_comment_s: Seconds = 15.0
    idempotency_hours: Count = 24
    integrity_interval_s: Seconds = 86_400.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_requests: Literal["all", "refused", "none"] = "refused"


class Effective(msgspec.Struct, frozen=True):
    """The settings in force, and where each came from: ``default``, a file's path, a variable's name or a flag."""

    config: Config
    origins: dict[str, str]


_TYPES = get_type_hints(Config, include_extras=True)


def load(flags: Mapping[str, object], environment: Mapping[str, str], file: str | None) -> Effective:
    """The settings in force. ``flags`` that are ``None`` were not given; ``file`` overrides ``TURNLOG_CONFIG``.

    Raises SettingError, naming the setting, where it came from and what it may be.
    """
    values: dict[str, object] = {}
    origins = dict.fromkeys(Config.__struct_fields__, "default")
    path = file if file is not None else environment.get("TURNLOG_CONFIG")
    if path is not None:
        for name, value in _read_file(path).items():
            _take(values, origins, name, value, path, strict=True)
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        if not variable.startswith(_FOREIGN_PREFIXES) and not text.startswith("tcp://"):
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            _take(values, origins, name, text, variable, strict=False)
    for name, given in flags.items():
        if given is not None:
            _take(values, origins, name, given, f"--{name.replace('_', '-')}", strict=True)
    return Effective(Config(**values), origins)  # type: ignore[arg-type] # each value was checked against its type


def _read_file(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise SettingError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"the settings file {path} is not TOML: {error}") from error


def _take(
    values: dict[str, object], origins: dict[str, str], name: str, value: object, origin: str, *, strict: bool
) -> None:
    """Check one setting. Variables are text, so ``strict`` is off for them: "8080" is a number there."""
    if name not in _TYPES:
        raise SettingError(f"unknown setting {name!r} ({origin}): `turnlog config` lists those there are")
    if not strict and isinstance(value, str) and _TYPES[name] is bool:
        value = value.lower()  # TRUE and True are meant as true
    try:
        values[name] = msgspec.convert(value, _TYPES[name], strict=strict)
    except msgspec.ValidationError:
        raise SettingError(f"bad setting {name!r} ({origin}): expected {_expected(_TYPES[name])}") from None
    origins[name] = origin


def _expected(kind: Any) -> str:
    """What a setting of this type may be, in words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if kind is bool:
        return "true or false"
    base, *metas = get_args(kind) or (kind,)
    words = {int: "a whole number", float: "a number of seconds", str: "text"}[base]
    for meta in metas:
        bounds = ((meta.ge, " from {}"), (meta.gt, " over {}"), (meta.le, " up to {}"))
        words += "".join(text.format(bound) for bound, text in bounds if bound is not None)
    return words
