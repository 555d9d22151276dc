"""What the report says whatever the figures are."""

INTRODUCTION = """\
# Benchmarks

<!-- Written by `python -m bench report` from benchmarks/results.json: change bench/, not this page. -->

`make bench` measures this on your machine and writes this page anew: Turnlog as it is installed, with credentials,
permissions, limits and metrics on and every commit synced to the disk, beside

* **the empty ASGI callable** on uvicorn, the ceiling: an application in Python that does nothing;
* **a textbook service** of the same contract (`bench/textbook.py`): FastAPI, Pydantic, SQLAlchemy, on SQLite and on
  PostgreSQL, each request its own synced transaction, tuned as its comments say;
* **raw inserts**, the other ceiling: a loop over one connection to the database, one synced transaction each, no HTTP.
"""

DISK = """\
A message's own fields are {field_bytes:.0f} bytes on average: the values of `messageId`, `text`, `sender.role`,
`sender.externalId`, `createdTimestamp` and `clientTimestamp` as the read operation gives them, in UTF-8, and nothing
else. Bytes on disk are those of the whole store after the run by the number of its messages: all tables and indexes,
conversations and keys included, PostgreSQL's write-ahead log not. No request had an `Idempotency-Key`, which would be
stored too. Memory is that of all processes of a server, what they share counted once; in runs from before 2026-11-23 it
is counted in each of them.
"""

MEANING = """\
## What the figures mean

* **Requests/s** is what a server does when it is asked as much as it can take. Plan with half of it.
* **Of the ceiling** compares with the empty callable at 64 connections in the same run. This ratio travels from machine
  to machine; requests per second do not.
* **p50, p99, p99.9**: half of the answers, all but one in a hundred, all but one in a thousand came within this time.
  Under full load most of it is waiting in line: twice the connections, twice the wait. What a caller meets on an
  ordinary day is the line of half load, or that of one connection.
  A percentile that a turn had too few requests for is left out.
* **One connection** is the time of one message without anybody else: its own sync to the disk, and the way there and
  back.
* **64 and 256 connections**: concurrent messages share commits, so the disk hardly counts; the processor does.
* **Batches** are the way to record a lot: one request, one transaction, up to 300 messages.
* **Mixed** is eight messages recorded, one read and one list of 20 of every ten requests, by the same callers.
* **CPU µs** is processor time per request, of the server with all its workers, and of PostgreSQL beside it. At full
  load it says more than requests per second: wrk, server and database share the processors here, elsewhere they do not.
* **Raw inserts** are one connection's. Many connections may record more than that, because they share syncs.
"""

HOW = """\
## How it was measured

* Everybody runs at once and waits; the scenarios take turns, round after round, so that whatever else the machine does
  meets all of them. A turn begins when no server works any more on what is over (checkpoints, vacuums) and the system
  has written its buffers to the disk. The first round warms up and is not counted.
* The load is wrk, one thread, outside the servers. It is a *closed loop*: each connection waits for its answer before
  it asks again. So a server that stalls is asked less while it stalls, and the percentiles are those of the requests
  that were made, not of those that independent callers would have made meanwhile. Half load is nearer to such callers:
  its pauses vary as theirs do.
* A request that fails, or is answered with anything but 2xx, ends the benchmark.
* The messages are short texts in 200 conversations; lists of 1,000 are of ten others. The seeded store has a tenth of
  its messages in one conversation and 100 in each of the others, which lie as far apart in the file as in life; its
  requests are about 200 conversations from all over it.
* Rounds differ. Where the lines of two bars overlap, neither is ahead.
* PostgreSQL has 512 MB of shared buffers, 4 GB of WAL between checkpoints, and otherwise its defaults: commits are
  synced. The textbook service and Turnlog use the same server, each its own database.
"""
