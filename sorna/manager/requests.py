"""What the doors ask of the manager and what they get; knows neither HTTP nor ZeroMQ."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from attrs import field, frozen

from sorna.model.agent import Agent, Drain
from sorna.model.kernel import KernelStatus
from sorna.model.policy import Slots
from sorna.model.queue import QueuePlace
from sorna.model.service import Service


@frozen
class MountWish:
    """A folder that a kernel shall see, by the name its owner or the one it is shared with knows.

    :ivar alias: where, below the working directory; empty for a directory of the folder's name.
    """

    name: str
    alias: str = ""


@frozen
class CreateRequest:
    """A wish for a kernel, with the client's own spellings.

    :ivar runtime: name or alias.
    :ivar names_joined: whether the token is what the ZeroMQ door made of a client's names. Such a token holds a colon, which
        no client may choose as its own, so that the two kinds never meet.
    :ivar memory: bytes; 0 for the runtime's default.
    :ivar execution_timeout: seconds; 0 for the default.
    :ivar cpu_cores: 0 for the default.
    :ivar gpus: whole devices; 0 for none, or for one where the runtime is made for them.
    :ivar labels: that its agent must have.
    :ivar wait: seconds that the kernel may wait for an agent where none is free; None for not at all.
    :ivar enqueue_only: whether to answer at once where it has to wait.
    :ivar reuse: whether a session of that token may be found instead of made.
    :ivar ports: what the client's own programs will listen on in a new kernel.
    """

    access_key: str
    session_token: str
    runtime: str
    memory: int = 0
    execution_timeout: float = 0.0
    cpu_cores: float = 0.0
    gpus: int = 0
    environ: Mapping[str, str] = field(factory=dict)
    tag: str | None = None
    names_joined: bool = False
    reuse: bool = True
    mounts: Sequence[MountWish] = ()
    ports: Sequence[int] = ()
    labels: Mapping[str, str] = field(factory=dict)
    wait: float | None = None
    enqueue_only: bool = False


@frozen
class Created:
    """The kernel a create request ended with.

    :ivar queue: where it stands while it waits.

    :ivar created: False when an existing session was found.
    :ivar services: the applications that can be reached in it.
    """

    kernel_id: uuid.UUID
    session_token: str
    runtime: str
    status: KernelStatus
    created: bool
    queue: QueuePlace | None = None
    services: Sequence[Service] = ()


@frozen
class AgentDescription:
    """An agent as its administrator sees it.

    :ivar first_contact: when it was first enrolled, in seconds since the epoch.
    :ivar taken: by its live kernels.
    :ivar alive: what it says of itself; None while it does not answer.
    :ivar drain: that it is being drained, or has been.
    :ivar lost_at: since when it does not answer; None while it does, and for the first second.
    """

    id: str
    first_contact: float
    taken: Slots
    alive: Agent | None
    drain: Drain | None = None
    lost_at: float | None = None


@frozen
class KernelInfo:
    """What a client may know of a live kernel. Times in seconds, sizes in bytes."""

    kernel_id: uuid.UUID
    session_token: str
    runtime: str
    requested_runtime: str
    age: float
    execution_timeout: float
    idle_timeout: float
    idle: float
    memory_limit: int
    memory_used: int
    cpu_used: float
    num_queries: int
    status: KernelStatus = KernelStatus.RUNNING
    queue: QueuePlace | None = None


@frozen
class KernelEvent:
    """A change of a kernel's status; ``reason`` may be empty.

    :ivar at: when it was, in seconds since the epoch.
    """

    kernel_id: uuid.UUID
    status: KernelStatus
    access_key: str
    session_token: str
    reason: str
    at: float
