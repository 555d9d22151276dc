"""The ASGI application: one way in and one way out for every request.

The order of the checks is the contract's: transport limits, credentials, permission, rate, path, body, existence,
state. Whatever goes wrong leaves as the error envelope, with the request id that the log knows it by.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any

import structlog

from turnlog.errors import (
    Error,
    InternalError,
    MethodNotAllowedError,
    NotFoundError,
    OutcomeUnknownError,
    OverloadedError,
)
from turnlog.http.cycle import WHOLE_ANSWER
from turnlog.http.requests import Budget, ClientGoneError, Request
from turnlog.http.responses import Response, error_response, rendered
from turnlog.http.routing import Router
from turnlog.keyring import unauthenticated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from turnlog.config import Config
    from turnlog.http.operations import Context, Operation
    from turnlog.http.requests import Receive, Scope
    from turnlog.http.responses import Header
    from turnlog.ids import Ulids
    from turnlog.keyring import Held, Keyring
    from turnlog.metrics import Metrics

    Send = Callable[[dict[str, Any]], Awaitable[None]]

_log = structlog.get_logger()


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
        self._router = Router(operations)
        self._context = context
        self._keyring = keyring
        self._metrics = metrics
        self._config = config
        self._ids = ids
        self._budget = Budget(config.max_gathered_bytes)
        self._log_all = config.log_requests == "all"
        self._log_refused = config.log_requests != "none"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        started_at = perf_counter()
        request = Request(scope, receive, self._ids.new(), self._budget)
        response = await self._answer(request)
        if response is not None:
            try:
                await self._send(request, response, send)
            except Exception:
                # A listing that cannot be read to its end: the connection is cut, so that nobody takes it for whole.
                _log.exception("answer_cut_off", request_id=request.id, operation=request.operation)
                raise
            status = response.status
            seconds = perf_counter() - started_at
            self._metrics.request(request.operation, status, seconds)
            if self._log_all or (status >= 400 and self._log_refused):
                self._log(request, response, seconds)

    async def _answer(self, request: Request) -> Response | None:
        """The answer; none where nobody waits for one."""
        try:
            return await self._dispatch(request)
        except Error as error:
            if isinstance(error, InternalError):
                _log.error("internal_error", request_id=request.id, operation=request.operation, exc_info=error)
            return error_response(error, request.id)
        except ClientGoneError:
            return None
        except asyncio.CancelledError:
            return error_response(_stopping(request), request.id)
        except Exception:  # noqa: BLE001 - whatever it is, the caller gets the envelope and the log gets the trace
            _log.exception("internal_error", request_id=request.id, operation=request.operation)
            bug = InternalError("internal error: the log has it under this request id")
            return error_response(bug, request.id)

    async def _dispatch(self, request: Request) -> Response:
        match = self._router.match(request.scope["raw_path"])
        method = request.scope["method"]
        operation = None if match is None else match.resource.operation(method)
        if operation is None:
            request.max_body_bytes = self._config.max_body_bytes
        else:
            request.operation = operation.name
            request.max_body_bytes = operation.max_body_bytes(self._config)
        request.check_length()
        if match is None or not match.resource.public:
            self._admit(request, operation)
        if match is None:
            raise NotFoundError("no such path")
        if operation is None:
            return _other_method(method, match.resource.allow)
        request.path = match.path
        return await operation.handler(self._context, request)

    def _admit(self, request: Request, operation: Operation | None) -> None:
        credentials = request.credentials()
        if credentials is None:
            raise unauthenticated()
        request.held = held = self._keyring.authenticate(*credentials)
        self._keyring.admit(held, None if operation is None else operation.permission)

    async def _send(self, request: Request, response: Response, send: Send) -> None:
        rate = _rate_fields(request.held) if request.held is not None and request.held.bucket is not None else ()
        head = response.head(request.id, rate)
        if response.stream is None and WHOLE_ANSWER in request.scope.get("extensions", ()):
            await send({"type": WHOLE_ANSWER, "status": response.status, "head": rendered(head), "body": response.body})
            return
        await send({"type": "http.response.start", "status": response.status, "headers": head})
        if response.stream is None:
            await send({"type": "http.response.body", "body": response.body})
            return
        if request.scope["method"] != "HEAD":
            gone = asyncio.ensure_future(request.gone())
            try:
                async for part in response.stream:
                    if gone.done():
                        return
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            finally:
                gone.cancel()
        await send({"type": "http.response.body", "body": b""})

    def _log(self, request: Request, response: Response, seconds: float) -> None:
        held = request.held
        _log.info(
            "request",
            request_id=request.id,
            operation=request.operation,
            status=response.status,
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


def _rate_fields(held: Held) -> list[Header]:
    assert held.bucket is not None  # noqa: S101 - the caller looked
    return [(name.encode(), value.encode()) for name, value in held.bucket.fields()]
