"""The pages under docs/ are true: what they list is what there is."""

from __future__ import annotations

import re

import msgspec

from tests.harness import REPOSITORY
from turnlog import errors
from turnlog.config import Config

OPERATIONS_PAGE = (REPOSITORY / "docs" / "operations.md").read_text("utf-8")
API_PAGE = (REPOSITORY / "docs" / "api.md").read_text("utf-8")


def test_the_table_of_settings_is_the_settings_with_their_defaults() -> None:
    """Every setting, in its order, with its default; and no other."""
    listed = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", OPERATIONS_PAGE, re.MULTILINE)
    defaults = msgspec.structs.asdict(Config())
    assert [name for name, _ in listed] == list(defaults)
    for name, shown in listed:
        value = defaults[name]
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode().removesuffix(".0")
        assert shown == text, name


def test_every_status_of_an_error_says_what_a_caller_should_do() -> None:
    """The table of answers in docs/api.md covers every code that the program can answer with."""
    table = API_PAGE.partition("## Retrying")[2].partition("\n\n`Idempotency-Key`")[0]
    codes = {error.code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "code")}
    for code in codes:
        assert code in table or re.search(rf"\b{code[:3]}\b", table), code
