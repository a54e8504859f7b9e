"""The exceptions of this package, as a tree by cause. `protocol.faults` maps them to the status
codes of each protocol.

    ServingError
    ├── InvalidRequest          the request is wrong and can never be answered
    │   ├── TooLarge            ... because it exceeds a limit in bytes, pixels or rows
    │   ├── PromptTooLong       ... because prompt and answer are longer than the context
    │   ├── UnsupportedMedia    ... because of its content type or encoding
    │   └── ContentRefused      ... because of what the checker saw in the picture
    ├── Unauthorized            the request has no API key, or none that is valid
    ├── Forbidden               a web page of another origin sent the request, or its API key may
    │   │                       not use the model
    │   └── Misdirected         ... or the request is for a host that this server is not
    ├── NotFound                no such model, version or route
    │   └── Gone                a picture whose address has expired
    ├── NotSupported            a route or operation that this server names but does not offer
    ├── QuotaExceeded           the API key's own limits are used up for now
    ├── Overloaded              the queue is full; a later attempt may succeed
    │   └── ServerOverloaded    ... or the process is near one of its limits
    ├── DeadlineExceeded        the caller's deadline passed before the answer
    │   └── WakeTimeout         ... because a model without pods did not start in time
    ├── Cancelled               the caller disconnected
    ├── NotReady                loading or warming
    │   └── Draining            shutting down; accepted work is still finished
    ├── ShapeNotWarm            a promised shape could not be warmed after ready
    ├── EngineFailed            the engine has failed; the process will end
    ├── OutOfMemory             the device had no memory even after a retry
    ├── StepFailed              this job made the engine raise; other jobs are not affected
    ├── CheckFailed             the checker gave no verdict on the picture
    ├── SigningFailed           the manifest of the picture's origin could not be signed
    └── UpstreamFailed          the server behind this proxy broke off before the end of its answer

A message says what happened, which numbers disagree and what to do. It never has a path, an address
or the text of another library's exception: the original is chained (`raise ... from`) and goes to
the log only.
"""

from __future__ import annotations

from typing import Any

FAILED_EXIT_CODE = 70
"""Of a process that an engine which failed for good, or a port that was lost, has ended: sysexits'
EX_SOFTWARE. It should be started again."""


class ServingError(Exception):
    """Base of the exceptions that this package raises on purpose.

    `reason` is the value of the metrics' label `reason` (`metrics.REASONS`).
    """

    reason = "internal"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        # worker processes pickle exceptions, and subclasses take other arguments than `args`
        return _restored, (type(self), vars(self))


def _restored(kind: type[ServingError], fields: dict[str, Any]) -> ServingError:
    error = kind.__new__(kind, fields["message"])
    vars(error).update(fields)
    return error


class InvalidRequest(ServingError):
    """The request is wrong, and would be wrong again. `param` is the name of the field, `row` the
    index of the row."""

    reason = "invalid_input"

    def __init__(self, message: str, *, param: str | None = None, row: int | None = None) -> None:
        super().__init__(message if row is None else f"row {row}: {message}")
        self.param = param
        self.row = row


class TooLarge(InvalidRequest):
    reason = "too_large"


class PromptTooLong(InvalidRequest):
    """More tokens than the model's context."""

    @classmethod
    def of(
        cls, context: int, prompt: str | int, answer: int = 0, *, share: str = ""
    ) -> PromptTooLong:
        """In OpenAI's words, by which agents and libraries recognise it: the tokens of the
        `prompt`, and of the `answer` if only both together are too many. `share` says how many of
        them are due to what."""
        share = f", {share}" if share else ""
        limit = f"This model's maximum context length is {context} tokens. However,"
        if not answer:
            asked = f"your messages resulted in {prompt} tokens{share}, and an answer takes one"
            advice = "Please reduce the length of the messages"
            return cls(f"{limit} {asked}. {advice}.", param="messages")
        total, of_answer = int(prompt) + answer, f"{answer} in the completion"
        asked = f"you requested {total} tokens ({prompt} in the messages{share}, {of_answer})"
        advice = "Please reduce the length of the messages or completion"
        return cls(f"{limit} {asked}. {advice}.", param="max_tokens")


class UnsupportedMedia(InvalidRequest):
    """The content type or encoding of the body is not supported. `accept_encoding` names the
    encodings that are, where the encoding was the reason."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        row: int | None = None,
        accept_encoding: str | None = None,
    ) -> None:
        super().__init__(message, param=param, row=row)
        self.accept_encoding = accept_encoding


class ContentRefused(InvalidRequest):
    """The checker found content in the picture that the operator does not let out."""

    reason = "content_policy"


class Unauthorized(ServingError):
    reason = "unauthorized"


class Forbidden(ServingError):
    reason = "forbidden"


class Misdirected(Forbidden):
    """The request's `Host` is not a name of this server."""


class NotFound(ServingError):
    reason = "not_found"


class Gone(NotFound):
    """The address was valid and is not any more."""


class NotSupported(ServingError):
    reason = "not_supported"


class QuotaExceeded(ServingError):
    """More than a caller or its API key may have. `retry_after_s` says when less will be in use."""

    reason = "quota"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(ServingError):
    """The admission queue is full. `retry_after_s` estimates when a place will be free."""

    reason = "queue_full"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServerOverloaded(Overloaded):
    """The overload gate refuses new requests."""

    reason = "overloaded"


class DeadlineExceeded(ServingError):
    reason = "deadline"


class WakeTimeout(DeadlineExceeded):
    """The model did not start while the request was held. Nothing was computed; `retry_after_s`
    estimates when it will be ready."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Cancelled(ServingError):
    reason = "cancelled"


class NotReady(ServingError):
    reason = "not_ready"
    retry_after_s = 5.0


class Draining(NotReady):
    reason = "draining"


class ShapeNotWarm(ServingError):
    """The model is ready, but not for what this request needs, until its process starts again."""

    reason = "not_ready"


class EngineFailed(ServingError):
    reason = "engine_failed"


class OutOfMemory(ServingError):
    reason = "oom"


class StepFailed(ServingError):
    reason = "poisoned"


class CheckFailed(ServingError):
    """A picture without a verdict is not sent."""


class SigningFailed(ServingError):
    """A picture without its mark is not sent."""


class UpstreamFailed(ServingError):
    """The request may have been carried out: it is not sent again."""
