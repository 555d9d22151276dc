"""What addresses a name has, from the system's resolver. Whether anything may be sent to them is not its business."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading

_MAX_LOOKUPS = 16
"""At once: a name whose server does not answer keeps a thread for as long as the system's resolver waits."""


class SystemResolver:
    """The system's resolver, in threads of its own: one that hangs keeps neither other work nor the exit waiting."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_MAX_LOOKUPS)

    async def __call__(self, host: str) -> list[str]:
        """The addresses of ``host``, best first. Raises OSError."""
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()

        def done(addresses: list[str], error: OSError | None) -> None:
            self._slots.release()
            if found.done():
                return
            if error is None:
                found.set_result(addresses)
            else:
                found.set_exception(error)

        def look_up() -> None:
            addresses: list[str] = []
            error: OSError | None = None
            try:
                infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                addresses = [str(info[4][0]) for info in infos]
            except OSError as caught:
                error = caught
            except UnicodeError:
                error = OSError(errno.EINVAL, "not a name")
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(done, addresses, error)

        try:
            threading.Thread(target=look_up, name="webhook-lookup", daemon=True).start()
        except RuntimeError:
            self._slots.release()
            raise OSError(errno.EAGAIN, "no thread to ask in") from None
        return await found
