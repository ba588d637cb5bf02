"""One table from what can go wrong to what an HTTP client is told; the only place that knows status codes of errors.

Source: section 1.5 of the REST interface's specification; titles are exact, misspellings included.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from attrs import frozen

from sorna import errors


class Era(Enum):
    """Where a problem's type points: what clients of each generation have always been told."""

    SORNA = "https://api.sorna.io/probs/"
    BACKEND = "https://api.backend.ai/probs/"


CONTENT_TYPE = b"application/problem+json; charset=utf-8"


class UnknownPath(errors.SornaError):
    """No route has this URL."""


class BadRequest(errors.SornaError):
    """The request is not one that this door understands at all."""


class MethodNotAllowed(errors.SornaError):
    """The URL exists, for other methods.

    :ivar allowed: the methods it has.
    """

    def __init__(self, allowed: frozenset[str]) -> None:
        super().__init__()
        self.allowed = allowed


class PayloadTooLarge(errors.SornaError):
    """The body is larger than this door reads."""


class UnsupportedMediaType(errors.SornaError):
    """The body is of another type than the route reads."""


class PreconditionFailed(errors.SornaError):
    """A header that the protocol of the route wants is missing or says something else."""


@frozen
class Problem:
    """A row of the table."""

    status: int
    slug: str
    title: str
    retry_after: int | None = None


INTERNAL = Problem(500, "internal-server-error", "Internal server error.")
UNAVAILABLE = Problem(503, "service-unavailable", "Serivce unavailable.", retry_after=2)

#: The first class of an error's method resolution order that has a row wins.
TABLE: Mapping[type[BaseException], Problem] = {
    errors.SornaError: Problem(500, "general-error", "General Sorna API Error."),
    UnknownPath: Problem(404, "generic-not-found", "Unknown URL path."),
    BadRequest: Problem(400, "generic-bad-request", "Bad request."),
    MethodNotAllowed: Problem(405, "method-not-allowed", "HTTP Method Not Allowed."),
    PayloadTooLarge: Problem(413, "payload-too-large", "The request body is too large."),
    UnsupportedMediaType: Problem(415, "unsupported-media-type", "The content type is not supported here."),
    PreconditionFailed: Problem(412, "precondition-failed", "The protocol version is not supported here."),
    errors.InvalidAuthentication: Problem(400, "invalid-auth-params", "Missing or invalid authorization parameters."),
    errors.AuthenticationFailed: Problem(401, "auth-failed", "Credential/signature mismatch."),
    errors.InvalidRequest: Problem(400, "invalid-api-params", "Missing or invalid API parameters."),
    errors.AgentNotFound: Problem(404, "agent-not-found", "No such agent."),
    errors.Forbidden: Problem(403, "generic-forbidden", "Forbidden operation."),
    errors.KernelNotFound: Problem(404, "kernel-not-found", "No such kernel."),
    errors.RunNotFound: Problem(404, "run-not-found", "No such run."),
    errors.OutputGone: Problem(410, "output-gone", "The output of the run is gone."),
    errors.RuntimeUnknown: Problem(404, "image-not-found", "No such environment image."),
    errors.FolderNotFound: Problem(404, "folder-not-found", "No such virtual folder."),
    errors.FolderAlreadyExists: Problem(
        400, "folder-already-exists", "The virtual folder already exists with the same name."
    ),
    errors.FolderForbidden: Problem(403, "generic-forbidden", "Forbidden operation."),
    errors.FolderInUse: Problem(409, "folder-in-use", "The virtual folder is in use."),
    errors.NotOffered: Problem(501, "not-implemented", "This API query is not implemented."),
    errors.InvitationNotFound: Problem(404, "invitation-not-found", "No such invitation."),
    errors.UploadConflict: Problem(409, "upload-conflict", "The upload is at another offset."),
    errors.KernelAlreadyExists: Problem(
        400, "kernel-already-exists", "The kernel already exists with a different runtime type (language)."
    ),
    errors.QuotaExceeded: Problem(412, "quota-exceeded", "You have reached your resource limit."),
    errors.RateLimitExceeded: Problem(429, "rate-limit-exceeded", "You have reached your API query rate limit."),
    errors.NoAgentAvailable: Problem(503, "instance-not-available", "There is no available instance.", retry_after=2),
    errors.Unavailable: UNAVAILABLE,
    errors.IsolationUnavailable: UNAVAILABLE,
    errors.KernelCreationFailed: Problem(500, "kernel-creation-failed", "Kernel creation has failed."),
    errors.KernelDestructionFailed: Problem(500, "kernel-destruction-failed", "Kernel destruction has failed."),
    errors.KernelRestartFailed: Problem(500, "kernel-restart-failed", "Kernel restart has failed."),
    errors.KernelExecutionFailed: Problem(
        500, "kernel-execution-failed", "Executing user code in the kernel has failed."
    ),
    errors.AgentError: Problem(500, "kernel-execution-failed", "Executing user code in the kernel has failed."),
}

#: What was renamed with the product.
_LATER_TITLES = {"general-error": "General Backend API Error."}

_WITH_AGENT_DETAILS = (
    errors.KernelCreationFailed,
    errors.KernelDestructionFailed,
    errors.KernelRestartFailed,
    errors.KernelExecutionFailed,
)


def problem_of(error: BaseException) -> Problem:
    """Find the row of an error; anything that nobody raised on purpose is an internal error."""
    for cls in type(error).__mro__:
        row = TABLE.get(cls)
        if row is not None:
            return row
    return INTERNAL


def problem_body(problem: Problem, detail: str = "", era: Era = Era.SORNA) -> dict[str, Any]:
    """Build the JSON object of a problem; the detail goes into the title, where all clients look."""
    title = _LATER_TITLES.get(problem.slug, problem.title) if era is Era.BACKEND else problem.title
    return {"type": era.value + problem.slug, "title": f"{title} ({detail})" if detail else title}


def error_body(error: errors.SornaError, era: Era = Era.SORNA) -> dict[str, Any]:
    """Build the JSON object for an error of the domain, with what an agent said where one was asked."""
    body = problem_body(problem_of(error), error.detail, era)
    cause: BaseException | None = error if isinstance(error, errors.AgentError) else None
    if isinstance(error, _WITH_AGENT_DETAILS):
        cause = error.__cause__
    if cause is not None:
        body["agent-details"] = agent_details(cause, era)
    return body


def agent_details(cause: BaseException, era: Era = Era.SORNA) -> dict[str, Any]:
    """Describe what went wrong at an agent, without a trace of our own code."""
    if isinstance(cause, errors.AgentTimeout):
        return {"type": era.value + "agent-timeout", "title": None}
    if isinstance(cause, errors.AgentRefused):
        return {"type": era.value + "agent-invalid-input", "title": cause.detail or None}
    if isinstance(cause, errors.AgentError):
        details = {
            "type": era.value + "agent-failure",
            "title": cause.detail or "Agent-side exception occurred.",
        }
        if isinstance(cause, errors.AgentFailed) and cause.exception is not None:
            details["exception"] = cause.exception
        return details
    if isinstance(cause, errors.SornaError):
        exception = f"{type(cause).__name__}({cause.detail!r})"
    else:
        # The text of a foreign exception may hold anything, so only its name leaves the house.
        exception = type(cause).__name__
    return {"type": era.value + "agent-failure", "title": "Unexpected exception ocurred.", "exception": exception}
