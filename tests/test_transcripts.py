"""The files that ``turnlog import`` reads: their forms, and what is wrong with some of their rows."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import TURNLOG, V1, Server, run_cli
from tests.importing import AT, COLUMNS, Importing, json_lines, listing, row, summary_of

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator


@pytest.fixture
def importing(tmp_path: Path, new_store: Callable[[], str], start: Callable[..., Server]) -> Importing:
    return Importing(tmp_path, new_store(), start)


# What files look like.


def as_csv(*rows: dict[str, Any], columns: tuple[str, ...] = COLUMNS, header: bool = True, end: str = "\n") -> str:
    written = io.StringIO(newline="")
    writer = csv.DictWriter(written, columns, lineterminator=end, restval="")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()


ODD = 'He said "no, 5,00 €",\r\nthen left\n\n  \tπ\U0001f600 '
PLAIN = (row("Hello"), row(ODD, role="agent", externalId="bob"), row("NULL?", role="Bot", externalId="b"))


def forms(conversation: str) -> Iterator[str]:
    """The same rows in every form that a file may have."""
    rows = [one | {COLUMNS[0]: conversation} for one in PLAIN]
    yield json_lines(*rows)
    yield json_lines(*rows).replace("\n", "\r\n\r\n")
    yield "\ufeff" + json_lines(*rows).rstrip("\n")
    yield as_csv(*rows)
    yield as_csv(*rows, header=False)
    yield "\ufeff" + as_csv(*rows, end="\r\n")
    yield "\ufeff" + as_csv(*rows, header=False).rstrip("\n")
    yield as_csv(*({"more": 'x,"y"'} | one for one in rows), columns=(*COLUMNS[3:], "more", *COLUMNS[2::-1]))


def test_forms_of_a_file(importing: Importing) -> None:
    files = []
    for number in range(8):
        content = list(forms(f"form-{number}"))[number].encode()
        files += [importing.file(content, f"{number}.txt"), importing.file(gzip.compress(content), f"{number}.csv")]
    summary = importing.summary(*files)
    assert (summary["recorded"], summary["present"]) == (24, 24)
    with importing.reading() as client:
        for number in range(8):
            found = [
                (m["sender"]["role"], m["sender"]["externalId"], m["text"]) for m in listing(client, f"form-{number}")
            ]
            assert found == [("customer", "jane", "Hello"), ("agent", "bob", ODD), ("system", "b", "NULL?")], number


def test_conversations_take_their_participants_from_their_rows(importing: Importing) -> None:
    file = importing.file(
        json_lines(
            row("a", 17, role="bot", externalId=4),
            row("b", 17, role="agent", externalId=5),
            row("c", 17, externalId=6),
            row("d", 17, externalId=7),
            row("e", "nobody", role="system", externalId="bot"),
        )
    )
    assert importing.summary(file)["recorded"] == 5
    # What exists already stays as it is.
    assert (
        importing.summary(importing.file(json_lines(row("f", "nobody"), row("g", 17, role="agent"))))["recorded"] == 2
    )
    with importing.reading() as client:
        assert [m["sender"]["externalId"] for m in listing(client, "17")] == ["4", "5", "6", "7", "jane"]
        (one,) = client.get(f"{V1}/conversations", params={"externalId": "17"}).json()["items"]
        (two,) = client.get(f"{V1}/conversations", params={"externalId": "nobody"}).json()["items"]
    assert (one["customer"], one["agent"]) == ({"externalId": "6"}, {"externalId": "5"})
    assert two["customer"] == {"externalId": "nobody"}
    assert "agent" not in two


def test_equal_rows_of_one_file_are_all_kept_and_counted(importing: Importing) -> None:
    thrice = json_lines(*[row("Hello?")] * 3)
    assert importing.summary(importing.file(thrice))["recorded"] == 3
    assert importing.summary(importing.file(thrice))["recorded"] == 0
    assert importing.summary(importing.file(json_lines(*[row("Hello?")] * 5)))["recorded"] == 2
    # Whole batches that are equal, too; and through the server, whose idempotency keys tell them apart.
    many = importing.file(json_lines(*[row("Hello?", "c2")] * 700, *[row("Hello?", "c3")] * 700))
    server = importing.start()
    assert importing.summary_over(server, many)["recorded"] == 1400
    assert importing.summary_over(server, many)["recorded"] == 0
    with server.client(importing.key) as client:
        assert [len(listing(client, conversation)) for conversation in ("c1", "c2", "c3")] == [5, 700, 700]


def test_several_files_are_each_set_against_what_is_recorded(importing: Importing) -> None:
    monday = importing.file(json_lines(row("1"), row("2")), "monday")
    tuesday = importing.file(json_lines(row("2"), row("3")), "tuesday")
    summary = importing.summary(monday, tuesday)
    assert (summary["files"], summary["recorded"], summary["present"]) == (2, 3, 1)
    assert importing.texts() == ["1", "2", "3"]


def test_order_of_arrival_is_the_order_of_the_file(importing: Importing) -> None:
    rows = [row(str(number), f"c{number % 3}") for number in range(3000)]  # all at the same instant
    assert importing.summary(importing.file(json_lines(*rows)))["recorded"] == 3000
    assert importing.texts("c1") == [str(number) for number in range(1, 3000, 3)]


def test_standard_input(importing: Importing) -> None:
    done = run_cli("import", "-", "--store", importing.store, text=as_csv(*PLAIN[:1]) + "x\n")
    assert done.returncode == 1
    assert done.stdout == "files: 1, rows: 2, recorded: 1, already there: 0, bad: 1\n"
    assert done.stderr.startswith("turnlog: -:3: 1 columns where 5 are expected")
    assert importing.texts() == ["Hello"]


# What is wrong with rows.


def named(done: subprocess.CompletedProcess[str], file: str) -> list[str]:
    """What was said of the file, without its name."""
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert all(line.startswith(f"turnlog: {file}:") for line in lines), lines
    return [line.removeprefix(f"turnlog: {file}:") for line in lines]


def test_bad_rows_of_json_are_named_and_the_rest_kept(importing: Importing) -> None:
    lines = [
        json_lines(row("first")).encode(),
        b"nonsense\n",
        b"[1]\n",
        b'{"text": "\xff"}\n',
        json_lines(row(), row(role="robot"), row(role=None), row(timestamp="2026-02-30T00:00:00Z")).encode(),
        json_lines(row(timestamp="0001-01-01T00:00:00+01:00"), row(timestamp=5), row(""), row("x\0y")).encode(),
        json_lines(
            row(conversation=True), row(externalId=1.5), row(externalId="x" * 256), row(conversation="")
        ).encode(),
        b'{"text": "cut off\n',
        b'{"deep": ' + b"[" * 100_000 + b"\n",
        json_lines(row("\ud800")).encode(),
        json_lines(row("last")).encode(),
    ]
    file = importing.file(b"".join(lines))
    done = importing.run(file)
    assert "rows: 20, recorded: 3, already there: 0, bad: 17" in done.stdout
    found = named(done, file)
    assert [said.partition(":")[0] for said in found] == [str(line) for line in (2, 3, 4, *range(6, 20))]
    for said, expected in zip(
        found,
        [
            "is not JSON",
            "expected one in each line",
            "is not UTF-8: byte 0xff",
            "sender_role 'robot': expected customer, agent, bot or system",
            "sender_role is missing",
            "timestamp '2026-02-30T00:00:00Z': expected an RFC 3339 timestamp",
            "outside the years 0001 to 9999",
            "timestamp is no string",
            "text is empty",
            "text: U+0000 cannot be stored",
            "conversation_externalId is no string",
            "sender_externalId is no string",
            "sender_externalId: 256 characters: at most 255 are accepted",
            "conversation_externalId is empty",
            "is not JSON",
            "is not JSON",
            "is not JSON",
        ],
        strict=True,
    ):
        assert expected in said
    assert importing.texts() == ["first", "Hello", "last"]


def test_bad_rows_of_csv_cost_no_other_row(importing: Importing) -> None:
    lines = [
        "c1,jane,customer,NULL," + AT,  # 1: the word NULL is no value
        'c1,jane,customer,"NULL",' + AT,  # 2: in quotation marks it is a text
        "c1,NULL,customer,x," + AT,  # 3
        "c1,jane,customer,one, two," + AT,  # 4
        'c1,jane,customer,"opened and never closed,' + AT,  # 5
        'c1,jane,customer,"two',  # 6
        'lines",' + AT,  # 7
        'c1,jane,customer,"a "quoted" word",' + AT,  # 8
        'c1,jane,customer,5" wide,' + AT,  # 9
        "c1,jane,visitor,x," + AT,  # 10
        'c1,jane,customer,"opened in the last,' + AT,  # 11
        "c1,jane,customer,last," + AT,  # 12
    ]
    file = importing.file("\n".join(lines))
    found = named(importing.run(file), file)
    assert [said.partition(":")[0] for said in found] == ["1", "3", "4", "5", "8", "10", "11"]
    assert "text is missing" in found[0]
    assert "6 columns where 5 are expected" in found[2]
    assert importing.texts() == ["NULL", "two\nlines", '5" wide', "last"]


def test_bad_rows_are_named_up_to_a_hundred(importing: Importing) -> None:
    file = importing.file(json_lines(row(), *[row(role="x")] * 150))
    done = importing.run(file)
    assert len(done.stderr.splitlines()) == 101
    assert done.stderr.splitlines()[-1] == "turnlog: … and 50 more bad rows"


def test_a_row_that_the_server_refuses_costs_no_other(importing: Importing) -> None:
    server = importing.start(TURNLOG_MAX_BATCH_BODY_BYTES="20000")
    texts = ["short", "x" * 30_000, *[f"{number:0500}" for number in range(200)]]
    file = importing.file(json_lines(*map(row, texts)))
    done = importing.run_over(server, file)
    assert len(named(done, file)) == 1
    assert named(done, file)[0].startswith("2: refused: ")
    with server.client(importing.key) as client:
        assert [m["text"] for m in listing(client, "c1")] == [text for text in texts if len(text) < 30_000]
    assert importing.summary_over(server, file, status=1)["recorded"] == 0


def test_files_that_cannot_be_read_are_named_and_the_others_imported(importing: Importing) -> None:
    packed = gzip.compress(json_lines(*[row(os.urandom(50).hex()) for _ in range(2000)]).encode())
    cases = {
        importing.file(b"", "empty"): "is empty",
        importing.file(gzip.compress(b""), "packed-empty"): "is empty",
        importing.file(packed[:-1000], "cut"): "is cut off here",
        importing.file(packed + b"garbage", "damaged"): "is damaged here",
        importing.file(Path(TURNLOG).resolve().parent.joinpath("python").read_bytes()[:9999], "binary"): "is not text",
        importing.file(json_lines(row()).encode("utf-16"), "utf-16"): "save it as UTF-8",
        importing.file(json.dumps([row()]), "array"): "JSON array: expected JSON lines",
        importing.file("text,timestamp\na,b\n", "header"): "the header does not name conversation_externalId once",
        str(importing.folder): "Is a directory",
        str(importing.folder / "missing"): "No such file",
    }
    good = importing.file(json_lines(row("good", "c2")), "good")
    done = importing.run(*cases, good, "--json")
    assert summary_of(done, 1)["unreadable"] == len(cases)
    for line, (file, expected) in zip(done.stderr.splitlines(), cases.items(), strict=True):
        assert line.startswith(f"turnlog: {file}:")
        assert expected in line
    assert importing.texts("c2") == ["good"]
    assert len(importing.texts("c1")) == 2000


def test_a_row_longer_than_the_limit(importing: Importing) -> None:
    file = importing.file(json_lines(row("first"), row("x" * 9_000_000), row("last")))
    assert named(importing.run(file), file) == ["2: the row is longer than 8 MiB"]
    assert importing.texts() == ["first", "last"]
