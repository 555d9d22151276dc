"""The worker processes of one server: forked, watched, started again where one ends, stopped together.

It knows nothing of what they do. The parent has no thread and no event loop, so that a fork at any time copies a
program that does nothing else; what outlives a worker (a socket, memory) is made before the first one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import selectors
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import structlog

from turnlog.errors import FinalError, SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEADY_S = 1.0
"""A worker that ended by itself so soon may do so every time."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
"""How long it waits then; the first time not at all. One that served and was killed does not wait."""
_STOPS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1
_READY = b"\n"
_FINAL = os.EX_DATAERR
"""The exit status of a worker that was refused for good."""
_log = structlog.get_logger()


class Worker:
    """What a worker knows of itself: its number, from 1, and its ties to the parent."""

    def __init__(self, number: int, lifeline: int, report: int) -> None:
        self.number = number
        self.lifeline = lifeline
        """A file descriptor that is readable once the parent is gone, however it went."""
        self._report = report

    def ready(self) -> None:
        """Tell the parent that this worker serves."""
        os.write(self._report, _READY)

    def die_with_parent(self) -> None:
        """From now on, ``kill -9`` of the parent kills this worker too. Elsewhere than on Linux, see ``lifeline``."""
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if select.select([self.lifeline], [], [], 0)[0]:  # gone before it could be tied to
            os.kill(os.getpid(), signal.SIGKILL)


class _Place:
    """One of the workers as the parent sees it, through all its lives."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid: int | None = None
        self.report = -1
        self.said = b""
        """A line end once it serves; the words of a SettingError where it was refused."""
        self.started_at = 0.0
        self.due_at = 0.0
        self.early_ends = 0

    @property
    def ready(self) -> bool:
        return self.pid is not None and self.said.startswith(_READY)

    @property
    def refusal(self) -> str:
        return self.said.decode("utf-8", "replace").strip()

    def rest(self) -> float:
        """How long to wait before the next life: growing for one that ends soon after each start."""
        self.early_ends += 1
        return 0.0 if self.early_ends == 1 else min(FIRST_PAUSE_S * 2.0 ** (self.early_ends - 2), LONGEST_PAUSE_S)


class Supervisor:
    """Keeps ``workers`` processes running, each doing ``work``, whose return value is its exit status.

    ``on_ready`` is called once, when all of them serve for the first time; ``on_stop`` once, when the stop begins.
    ``patience_s`` is how long they may take to stop before they are killed.
    """

    def __init__(
        self,
        workers: int,
        work: Callable[[Worker], int],
        *,
        on_ready: Callable[[], None],
        on_stop: Callable[[], None],
        patience_s: float,
        monotonic_s: Callable[[], float],
    ) -> None:
        self._places = [_Place(number) for number in range(1, workers + 1)]
        self._work = work
        self._on_ready = on_ready
        self._on_stop = on_stop
        self._patience_s = patience_s
        self._now_s = monotonic_s
        self._all_were_ready = False
        self._stopping = False
        self._kill_at: float | None = None
        self._refusal = ""
        self._clean = True

    def run(self) -> int:
        """Until SIGTERM or SIGINT; 0 where every worker stopped in good order, else 1.

        A worker that is refused with a SettingError before all have served ends everything, and the error is raised
        here; later it is tried again, as one that ended, unless that is a FinalError and no other worker serves.
        """
        with self._ears():
            while not self._stopping or any(place.pid is not None for place in self._places):
                self._start_due()
                self._listen()
                self._kill_late()
        if self._refusal:
            raise SettingError(self._refusal)
        return 0 if self._clean else 1

    @contextlib.contextmanager
    def _ears(self) -> Iterator[None]:
        """Signals arrive as bytes in a pipe, to be waited for together with what the workers say."""
        self._signals, self._signalled = os.pipe()
        # Nobody writes into this one: workers hear its end when the parent, the only one to hold that side, is gone.
        self._lifeline, self._life = os.pipe()
        for end in (self._signals, self._signalled):
            os.set_blocking(end, False)
        before = {number: signal.signal(number, lambda *_: None) for number in (*_STOPS, signal.SIGCHLD)}
        wakeup = signal.set_wakeup_fd(self._signalled, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            for end in (self._signals, self._signalled, self._lifeline, self._life):
                os.close(end)

    # The parent's life.

    def _start_due(self) -> None:
        for place in self._places:
            if not self._stopping and place.pid is None and place.due_at <= self._now_s():
                self._start(place)

    def _listen(self) -> None:
        """Wait for the next thing to happen, and see to it."""
        with selectors.PollSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            for place in self._places:
                if place.pid is not None:
                    selector.register(place.report, selectors.EVENT_READ, place)
            heard = selector.select(self._idle_s())
        if any(key.data is None for key, _ in heard):  # first: a worker that was told to stop too has not died
            self._obey(os.read(self._signals, 512))
        for place in (key.data for key, _ in heard if key.data is not None):
            if said := os.read(place.report, 65_536):
                place.said += said
                if place.ready and (len(self._places) > 1 or self._all_were_ready):  # else ``on_ready`` says it
                    _log.info("worker_ready", worker=place.number, pid=place.pid)
            else:  # nobody holds the other end any more
                self._ended(place)
        self._bury_strangers()
        if not self._all_were_ready and all(place.ready for place in self._places):
            self._all_were_ready = True
            self._on_ready()

    def _idle_s(self) -> float | None:
        """How long there is nothing to do by itself; ``None`` where that is for ever."""
        due = [place.due_at for place in self._places if place.pid is None and not self._stopping]
        if self._kill_at is not None:
            due.append(self._kill_at)
        return max(0.0, min(due) - self._now_s()) if due else None

    def _obey(self, numbers: bytes) -> None:
        for number in numbers:
            if number not in _STOPS:
                continue
            if not self._stopping:
                self._stop()
            elif number == signal.SIGINT:  # a second Ctrl-C: somebody does not want to wait
                self._kill_at = self._now_s()

    def _stop(self) -> None:
        self._stopping = True
        self._kill_at = self._now_s() + self._patience_s
        self._on_stop()
        self._send(signal.SIGTERM)

    def _kill_late(self) -> None:
        if self._kill_at is not None and self._kill_at <= self._now_s():
            late = [place.number for place in self._places if place.pid is not None]
            if late:
                self._clean = False
                _log.error("workers_killed", workers=late)
                self._send(signal.SIGKILL)
            self._kill_at = None  # what is left is to see them end

    def _bury_strangers(self) -> None:
        """The first process of a container is given the orphans of all others, and nobody else notes their ends."""
        ours = {place.pid for place in self._places}
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in ours:
                os.waitpid(ended.si_pid, 0)

    def _send(self, number: int) -> None:
        for place in self._places:
            if place.pid is not None:  # not waited for yet, so the number is still its own
                os.kill(place.pid, number)

    def _ended(self, place: _Place) -> None:
        assert place.pid is not None  # noqa: S101 - it said so
        os.close(place.report)
        was_ready, pid, place.pid = place.ready, place.pid, None
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if self._stopping:
            # One that was still starting up has nothing to finish.
            if status and (was_ready or status != -signal.SIGTERM):
                self._clean = False
                _log.error("worker_ended", worker=place.number, pid=pid, **_manner(status))
            return
        final = status == _FINAL and not any(other.ready for other in self._places)
        if place.refusal and (final or not self._all_were_ready):
            self._refusal = place.refusal
            self._stop()
            return
        now_s = self._now_s()
        lived_s = now_s - place.started_at
        if was_ready and lived_s >= STEADY_S:
            place.early_ends = 0
        pause_s = 0.0 if was_ready and status < 0 else place.rest()
        place.due_at = now_s + pause_s
        why = {"error": place.refusal} if place.refusal else _manner(status)
        _log.error("worker_ended", worker=place.number, pid=pid, **why, next_in_s=pause_s)

    # Births.

    def _start(self, place: _Place) -> None:
        place.report, report = os.pipe()
        place.said = b""
        place.started_at = self._now_s()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # or the worker would have it to say again
        # A signal between the fork and the worker's own arrangements would be lost on it.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        try:
            place.pid = os.fork()
            if place.pid == 0:
                self._be_worker(place, report, unblocked)
        except OSError as error:
            os.close(place.report)
            place.due_at = self._now_s() + place.rest()
            _log.error("worker_not_started", worker=place.number, error=str(error))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            os.close(report)

    def _be_worker(self, place: _Place, report: int, unblocked: set[int | signal.Signals]) -> NoReturn:
        """In the new process: do the work and end, past everything that the parent would do at its own end."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of us; the parent passes it on as SIGTERM
            for end in (self._signals, self._signalled, self._life, *self._others(place), place.report):
                os.close(end)
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            status = self._work(Worker(place.number, self._lifeline, report))
        except SettingError as refusal:
            os.write(report, str(refusal).encode("utf-8", "backslashreplace"))
            status = _FINAL if isinstance(refusal, FinalError) else 1
        except BaseException:  # noqa: BLE001 - whatever it was, this process must not go on as the parent
            _log.exception("worker_failed")
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _others(self, place: _Place) -> list[int]:
        return [other.report for other in self._places if other is not place and other.pid is not None]


def _manner(status: int) -> dict[str, object]:
    """How a process ended, for the log."""
    names = {one.value: one.name for one in signal.Signals}
    return {"status": status} if status >= 0 else {"signal": names.get(-status, -status)}
