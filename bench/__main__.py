"""``python -m bench``: Turnlog beside its ceilings and a textbook service, in one run, which ends with a report.

python -m bench            measures (20 minutes), keeps docs/benchmarks/results.json, writes the report
python -m bench --quick    fewer scenarios, fewer messages stored (4 minutes); prints the report, keeps nothing
python -m bench report     writes the report again, of the results that are kept
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench import report, results
from bench.load import need_wrk

DOCS = Path(__file__).resolve().parent.parent / "docs"
KEPT = DOCS / "benchmarks" / "results.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("run", "report"), default="run")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, help="5, quick 3")
    parser.add_argument("--seconds", type=int, help="of each turn: 2, quick 1")
    parser.add_argument("--stored", type=int, help="messages stored before: 10,000,000, quick 200,000")
    parser.add_argument("--folder", help="where the stores are made (PostgreSQL's only where everybody may enter)")
    parser.add_argument("--into", type=Path, help="write results and report into this folder instead of docs/")
    arguments = parser.parse_args()
    if arguments.what == "report":
        report.write(results.read(KEPT), arguments.into or DOCS)
        return
    need_wrk()
    from bench.run import Plan, run  # noqa: PLC0415 - needs what only the benchmark installs

    rounds, seconds, stored = (3, 1, 200_000) if arguments.quick else (5, 2, 10_000_000)
    plan = Plan(
        arguments.rounds or rounds,
        arguments.seconds or seconds,
        arguments.stored or stored,
        quick=arguments.quick,
    )
    tempfile.tempdir = arguments.folder  # PostgreSQL's too
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-") as folder:
        found = run(Path(folder), plan)
    docs = arguments.into or (None if arguments.quick else DOCS)
    if docs is not None:
        (docs / "benchmarks").mkdir(parents=True, exist_ok=True)
        results.write(found, docs / "benchmarks" / "results.json")
        report.write(found, docs)
    print(report.text(found))


if __name__ == "__main__":
    main()
