"""Exceptions, grouped by who has to act on them.

`ModelFault` goes back to the model, which may try again. `CallerError` goes to whoever made the call and becomes a 4xx.
`OperatorError` goes to whoever runs Lectern and becomes a 5xx. Anything else that escapes is a defect of ours.
"""

from __future__ import annotations


class LecternError(Exception):
    """Base of every error raised on purpose.

    Args:
        message: what is wrong, with the offending value.
        hint: what to do about it, as a sentence; shown after the message.
        field: the argument, option or configuration key at fault, if there is one.
    """

    status = 500
    code = "error"

    def __init__(self, message: str, *, hint: str = "", field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ModelFault(LecternError):
    """The model asked for something impossible; the text is returned to it and it may retry."""

    status = 422
    code = "model_fault"


class CallerError(LecternError):
    """The request can't be served as made; the caller has to change it."""

    status = 400
    code = "invalid_request"


class NotFound(CallerError):
    """The named thing does not exist, or belongs to another tenant: the two are never told apart."""

    status = 404
    code = "not_found"


class Conflict(CallerError):
    """The request contradicts the present state."""

    status = 409
    code = "conflict"


class TooLarge(CallerError):
    """The request exceeds a limit; the message gives both sizes."""

    status = 413
    code = "too_large"


class ConfigError(CallerError):
    """A configuration file, variable or option is wrong."""

    code = "invalid_configuration"


class OperatorError(LecternError):
    """Whoever runs Lectern has to act: a store is locked, a disk is full, a server is down."""

    status = 503
    code = "unavailable"


class StoreLocked(OperatorError):
    """Another process holds the embedded store."""

    code = "store_locked"


class StoreCorrupt(OperatorError):
    """Stored state contradicts itself; `lectern index verify` shows where."""

    status = 500
    code = "store_corrupt"


class ModelUnavailable(OperatorError):
    """A model can't be loaded or its server can't be reached."""

    code = "model_unavailable"


class Busy(OperatorError):
    """As many requests are here as may be; the caller tries again later."""

    status = 429
    code = "rate_limit_exceeded"
