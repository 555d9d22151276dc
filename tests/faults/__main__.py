"""``python -m tests.faults [NAME…] [--store KIND] [--short] [--record]``: the fault drivers in their long form.

Prints what each run came to; ``--record`` keeps it in docs/ledger.json and docs/reliability.md. The status is 1 where
one did not pass.
"""

from __future__ import annotations

import argparse
import sys

from tests.faults.drivers import DRIVERS
from tests.faults.ledger import line, record
from tests.faults.machine import Stolen
from tests.stores import KINDS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all of them, or some: {', '.join(DRIVERS)}")
    parser.add_argument("--store", choices=KINDS)
    parser.add_argument("--short", action="store_true", help="as in the suite")
    parser.add_argument("--record", action="store_true", help="keep it in docs/ledger.json and docs/reliability.md")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(DRIVERS):
        parser.error(f"there is no driver {', '.join(sorted(unknown))}")
    all_passed = True
    for name in arguments.names or DRIVERS:
        driver = DRIVERS[name]
        for store in driver.stores:
            if arguments.store not in (None, store):
                continue
            stolen = Stolen()
            for entry in driver.run(store, arguments.short):
                entry.figures["stolen %"] = stolen.percent()
                print(line(entry), flush=True)  # noqa: T201
                all_passed &= entry.passed
                if arguments.record:
                    record([entry])
    sys.exit(not all_passed)


if __name__ == "__main__":
    main()
