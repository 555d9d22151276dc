"""The application: one way in and one way out for every request.

The order of the checks is the contract's: transport limits, credentials, permission, rate, path, body, existence,
state. Whatever goes wrong leaves as the error envelope, with the request id that the log knows it by.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

import structlog

from turnlog.errors import (
    Error,
    InternalError,
    MethodNotAllowedError,
    NotFoundError,
    OutcomeUnknownError,
    OverloadedError,
    RateLimitedError,
    UnauthenticatedError,
)
from turnlog.feed import wake
from turnlog.guesses import LATE_S
from turnlog.http.requests import Budget, ClientGoneError
from turnlog.http.responses import Response, error_response
from turnlog.http.routing import Router
from turnlog.keyring import unauthenticated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from turnlog.config import Config
    from turnlog.http.operations import Context, Operation
    from turnlog.http.requests import Request
    from turnlog.ids import Ulids
    from turnlog.keyring import Keyring
    from turnlog.metrics import Metrics

_log = structlog.get_logger()
_RECORDING = frozenset({"conversations:write", "messages:write"})
"""The permissions of what is queued."""
_MAX_LOGGED_PER_S = 20
_OF_LOAD = frozenset({429, 503})
"""The refusals of which there may be as many as callers can send: a line for each would cost more than the refusal."""


class App:
    """Turnlog's HTTP interface."""

    def __init__(
        self,
        operations: Iterable[Operation],
        context: Context,
        keyring: Keyring,
        metrics: Metrics,
        config: Config,
        ids: Ulids,
    ) -> None:
        table = tuple(operations)
        self._router = Router(table)
        self._max_body_bytes = {operation.name: operation.max_body_bytes(config) for operation in table}
        self._context = context
        self._keyring = keyring
        self._metrics = metrics
        self._config = config
        self._ids = ids
        self._budget = Budget(config.max_gathered_bytes)
        self._log_all = config.log_requests == "all"
        self._log_refused = config.log_requests != "none"
        guesses = keyring.guesses
        metrics.gauge("turnlog_late_refusals", "Refusals of credentials that are held back.", lambda: guesses.late)
        self._second = self._logged = self._unlogged = 0

    async def answer(self, request: Request) -> Response | None:
        """The answer to ``request``; none where nobody waits for one. What goes wrong is an answer too."""
        request.arrived_at = perf_counter()
        request.id = self._ids.new()
        request.budget = self._budget
        try:
            begun = self._begin(request)
            response = begun if isinstance(begun, Response) else await begun
        except UnauthenticatedError as error:
            response = error_response(await self._refuse(request, error), request.id)
        except Error as error:
            if isinstance(error, InternalError):
                _log.error("internal_error", request_id=request.id, operation=request.operation, exc_info=error)
            response = error_response(error, request.id)
        except ClientGoneError:
            return None
        except asyncio.CancelledError:
            response = error_response(_stopping(request), request.id)
        except Exception:  # noqa: BLE001 - whatever it is, the caller gets the envelope and the log gets the trace
            _log.exception("internal_error", request_id=request.id, operation=request.operation)
            bug = InternalError("internal error: the log has it under this request id")
            response = error_response(bug, request.id)
        finally:
            request.free()
        held = request.held
        if held is not None and held.bucket is not None:
            response.headers += tuple((name.encode(), value.encode()) for name, value in held.bucket.fields())
        return response

    def answered(self, request: Request, response: Response) -> None:
        """The answer has left: count it, and log it where that is asked for."""
        status = response.status
        seconds = perf_counter() - request.arrived_at
        self._metrics.request(request.operation, status, seconds)
        if request.quiet:
            return
        if self._log_all or (status >= 400 and self._log_refused and (status not in _OF_LOAD or self._may_log())):
            self._log(request, status, seconds)

    def _may_log(self) -> bool:
        """Whether there is room for a refusal's line in this second; those left out are told in the next that logs."""
        second = int(perf_counter())
        if second != self._second:
            if self._unlogged:
                _log.info("requests_not_logged", statuses=sorted(_OF_LOAD), count=self._unlogged)
            self._second, self._logged, self._unlogged = second, 0, 0
        if self._logged >= _MAX_LOGGED_PER_S:
            self._unlogged += 1
            return False
        self._logged += 1
        return True

    def _begin(self, request: Request) -> Response | Awaitable[Response]:
        """Everything up to the body: what the contract has checked before, in its order."""
        match = self._router.match(request.raw_path)
        method = request.method.decode("ascii")
        operation = None if match is None else match.resource.operation(method)
        if operation is None:
            request.max_body_bytes = self._config.max_body_bytes
        else:
            request.operation = operation.name
            request.max_body_bytes = self._max_body_bytes[operation.name]
        request.check_length()
        if match is None or not match.resource.public:
            self._admit(request, operation)
        if match is None:
            raise NotFoundError("no such path")
        if operation is None:
            return _other_method(method, match.resource.allow)
        request.path = match.path
        if match.resource.public:  # may look at other workers, with timeouts of its own: that takes a task
            return asyncio.ensure_future(operation.handler(self._context, request))
        return operation.handler(self._context, request)

    def _admit(self, request: Request, operation: Operation | None) -> None:
        credentials = request.credentials()
        if credentials is None:
            raise unauthenticated()
        request.held = held = self._keyring.authenticate(*credentials)
        permission = None if operation is None else operation.permission
        self._keyring.admit(held, permission)
        if permission in _RECORDING:
            self._context.service.check_room(held.key)

    async def _refuse(self, request: Request, error: UnauthenticatedError) -> Error:
        """The refusal of credentials, when it is time for it; one of too many is told so at once."""
        guesses, source, key_id = self._keyring.guesses, request.source(), request.fields.get(b"asapp-api-id")
        if not guesses.are_many(source, None if key_id is None else key_id.decode("latin-1")):
            return error
        request.quiet = True
        time_is_up = asyncio.get_running_loop().create_future()
        timer = asyncio.get_running_loop().call_later(LATE_S, wake, time_is_up)
        request.on_end = lambda: wake(time_is_up)
        try:
            with guesses.holding_back(source):
                if not request.ends:
                    await time_is_up
        except RateLimitedError as too_many:
            request.keep_alive = False
            return too_many
        finally:
            timer.cancel()
            request.on_end = None
        return error

    @staticmethod
    def _log(request: Request, status: int, seconds: float) -> None:
        held = request.held
        _log.info(
            "request",
            request_id=request.id,
            operation=request.operation,
            status=status,
            milliseconds=round(seconds * 1000, 3),
            key=None if held is None else held.key.id,
        )


def _stopping(request: Request) -> Error:
    """Why a request is cut short: a stopping server's patience with what is under way is at its end."""
    if request.complete:
        return OutcomeUnknownError("the server is stopping: retry with the same Idempotency-Key", retry_after_s=1)
    return OverloadedError("the server is stopping", retry_after_s=1)


def _other_method(method: str, allow: str) -> Response:
    if method == "OPTIONS":
        return Response(status=204, headers=((b"allow", allow.encode()),))
    raise MethodNotAllowedError(f"this path does not offer that method: it offers {allow}", allow)
