"""``python -m tests.halves``: the whole suite as runs side by side, two for each kind of store.

Tests wait for processes to start and for disks for half of their time, so that two for each processor are done soonest.
What needs no store runs with SQLite; what is marked ``alone`` runs last, by itself. Arguments go to every run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import ExitStack

KINDS = (("--store", "sqlite"), ("--store", "postgresql", "--of-stores-only"))
RUNS = [(*kind, "--slice", f"{part}/2", "-m", "not alone") for kind in KINDS for part in (1, 2)]
LAST = ("-m", "alone")
NOTHING_TO_RUN = 5
"""pytest's status where the arguments leave nothing of a run."""


def main(arguments: list[str]) -> int:
    """The exit status: 0 where every run passed. The first is shown as it goes, the others behind it."""
    first, *others, last = ([sys.executable, "-m", "pytest", *run, *arguments] for run in (*RUNS, LAST))
    with ExitStack() as stack:
        running = []
        for command in others:
            said = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
            stack.callback(process.terminate)
            running.append((process, said))
        statuses = {subprocess.run(first, check=False).returncode}
        for process, said in running:
            statuses.add(process.wait())
            said.seek(0)
            sys.stdout.buffer.write(said.read())
            sys.stdout.flush()
        statuses.add(subprocess.run(last, check=False).returncode)
    return max(statuses - {NOTHING_TO_RUN}, default=NOTHING_TO_RUN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
