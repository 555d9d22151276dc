"""``python -m tests.halves``: the whole suite as two runs side by side, one for each kind of store.

Tests mostly wait for processes to start and for disks: two at a time take little longer than one. What needs no store
runs in the first half. Arguments go to both.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

HALVES = (("--store", "sqlite"), ("--store", "postgresql", "--of-stores-only"))
NOTHING_TO_RUN = 5
"""pytest's status where the arguments leave nothing of a half."""


def main(arguments: list[str]) -> int:
    """The exit status: 0 where both halves passed. The first half is shown as it goes, the second behind it."""
    first, second = ([sys.executable, "-m", "pytest", *half, *arguments] for half in HALVES)
    with tempfile.TemporaryFile() as said:
        other = subprocess.Popen(second, stdout=said, stderr=subprocess.STDOUT)
        try:
            status = subprocess.run(first, check=False).returncode
            other_status = other.wait()
        finally:
            other.terminate()
        said.seek(0)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    statuses = {status, other_status} - {NOTHING_TO_RUN}
    return max(statuses, default=NOTHING_TO_RUN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
