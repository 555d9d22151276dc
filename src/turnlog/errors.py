"""What can go wrong, seen from outside: each error carries its stable code and the message for the caller.

The first three characters of a code are the HTTP status (contract: "Errors"). Nothing here knows HTTP beyond that.
"""

from __future__ import annotations


class Error(Exception):
    """An answer other than success that this program gives on purpose.

    The message goes to the caller as it is: it says what is wrong, where, and what would be right, and never carries
    a secret, a message's text, SQL or a file name.
    """

    code: str = "500-01"

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status that the code stands for."""
        return int(self.code[:3])


class MalformedBodyError(Error):
    """The body is not JSON."""

    code = "400-01"


class MalformedParameterError(Error):
    """A query parameter or a header is missing or malformed."""

    code = "400-02"


class SchemaMismatchError(Error):
    """The body is JSON but not of the published schema."""

    code = "400-03"


class UnauthenticatedError(Error):
    """The credentials are missing, unknown, wrong, revoked or expired: the caller is not told which."""

    code = "401-01"


class ForbiddenError(Error):
    """The key is good and lacks the permission that the operation needs."""

    code = "403-01"


class NotFoundError(Error):
    """No such route, conversation or message, or one of another account."""

    code = "404-01"


class MethodNotAllowedError(Error):
    """The resource exists and does not offer the method."""

    code = "405-01"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeoutError(Error):
    """The request's head or body did not arrive in time."""

    code = "408-01"


class AlreadyRecordedError(Error):
    """It is recorded durably and this request adds nothing; never raised for what is still in flight."""

    code = "409-01"


class GoneError(Error):
    """The cursor is a good one, and what comes behind it is not kept any more."""

    code = "410-01"


class BodyTooLargeError(Error):
    """The body is over the limit."""

    code = "413-01"


class TargetTooLongError(Error):
    """The request target is over the limit."""

    code = "414-01"


class UnsupportedMediaTypeError(Error):
    """The body is not ``application/json``, or it has a content encoding."""

    code = "415-01"


class UnprocessableError(Error):
    """It fits the published schema and this server still refuses it."""

    code = "422-01"


class IdempotencyKeyReusedError(Error):
    """The idempotency key was used before, with another request."""

    code = "422-02"


class RateLimitedError(Error):
    """The key is over its rate."""

    code = "429-01"


class HeadersTooLargeError(Error):
    """The request's headers are over the limits."""

    code = "431-01"


class InternalError(Error):
    """A bug of this program, logged with its trace under the request id."""

    code = "500-01"


class OverloadedError(Error):
    """Refused before it was queued, or dropped from the queue: certainly not stored."""

    code = "503-01"


class OutcomeUnknownError(Error):
    """The store failed, or the deadline passed, while the write was under way: it may or may not be stored."""

    code = "503-02"


class SettingError(Exception):
    """A setting, a store or a file cannot be used; the message is the one line that the operator reads."""


class FinalError(SettingError):
    """It cannot be used, and trying again does not help: somebody has to do something first."""
