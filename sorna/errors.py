"""What can go wrong in the domain, in the domain's words.

Knows no status codes and no wire formats: each door has its own table from these classes to its answers.
``detail`` is a sentence for the client that names what is wrong; it must never carry a secret.
"""

from __future__ import annotations


class SornaError(Exception):
    """The root of everything that Sorna itself raises on purpose."""

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidRequest(SornaError):
    """A parameter is missing, of the wrong type or out of range; nothing was changed."""


class InvalidAuthentication(SornaError):
    """The credentials cannot be understood: no date, an unknown scheme, a malformed header."""


class AuthenticationFailed(SornaError):
    """The credentials are understood and wrong, or the keypair is not active."""


class RateLimitExceeded(SornaError):
    """The keypair has used up its requests of the current window.

    :ivar reset: milliseconds until the window ends; None where that is not known.
    """

    def __init__(self, detail: str = "", reset: int | None = None) -> None:
        super().__init__(detail)
        self.reset = reset


class QuotaExceeded(SornaError):
    """The keypair has no room for this: its own limits or its policy's; the detail says which, and what is in use."""


class NotFound(SornaError):
    """What an administrator wants to change is not there."""


class AgentNotFound(SornaError):
    """No enrolled agent has the name."""


class Forbidden(SornaError):
    """The caller is known, and this is for administrators."""


class KernelNotFound(SornaError):
    """No live kernel of this owner has the id."""


class RunNotFound(SornaError):
    """The kernel is the owner's, and no run of it has the id."""


class OutputGone(SornaError):
    """The output of a run was there and is not kept any more; the detail says why."""


class KernelAlreadyExists(SornaError):
    """The session token names a live kernel of another runtime."""


class RuntimeUnknown(SornaError):
    """No runtime has this name or alias."""


class FolderNotFound(SornaError):
    """No virtual folder that this access key may see has the name or id."""


class FolderAlreadyExists(SornaError):
    """The access key sees a virtual folder of this name already."""


class FolderForbidden(SornaError):
    """The access key sees the virtual folder and may not do this with it."""


class FolderInUse(SornaError):
    """Kernels of the virtual folder's owner see it; the detail names their sessions."""


class NotOffered(SornaError):
    """Later servers offer this and Sorna does not; the detail says why."""


class InvitationNotFound(SornaError):
    """No open invitation of this id is for this access key, or by it."""


class UploadConflict(SornaError):
    """An upload is not where the client thinks it is; nothing was written."""


class NoAgentAvailable(SornaError):
    """No live agent offers the runtime and has a free place."""


class QueueFull(NoAgentAvailable):
    """As many kernels wait for an agent as may."""


class Unavailable(SornaError):
    """A part that Sorna stands on does not answer now; the same request may succeed later."""


class AgentError(SornaError):
    """An agent was asked and did not do it."""


class AgentTimeout(AgentError):
    """The agent did not answer before the deadline."""


class AgentRefused(AgentError):
    """The agent answered that the input is wrong for it."""


class AgentFailed(AgentError):
    """Something broke inside the agent.

    :ivar exception: the agent's exception as text, for instance ``ValueError('boom', 1)``.
    """

    def __init__(self, detail: str = "", exception: str | None = None) -> None:
        super().__init__(detail)
        self.exception = exception


class KernelCreationFailed(SornaError):
    """An agent was chosen and could not make the kernel; ``__cause__`` is its :class:`AgentError`."""


class KernelDestructionFailed(SornaError):
    """The kernel could not be destroyed; ``__cause__`` is the :class:`AgentError`."""


class KernelRestartFailed(SornaError):
    """The kernel could not be restarted; ``__cause__`` is the :class:`AgentError`."""


class KernelExecutionFailed(SornaError):
    """A run, an upload, an interrupt or a completion could not be carried out; ``__cause__`` tells why."""


class IsolationUnavailable(SornaError):
    """This host cannot give the isolation tier that was asked for; ``detail`` says what is missing."""
