"""The error that every protocol answers in its own shape."""

from __future__ import annotations


class RequestError(Exception):
    """A request cannot be answered.

    Attributes:
        status: HTTP status.
        code: a short, stable word, such as ``model_not_found``.
        message: what is wrong and what to do instead. It quotes no prompt and no path of another client.
        param: the field of the request that is wrong, None if there is none.
        retry_after_s: seconds after which the same request may succeed, None if it never will.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        super().__init__(message)
