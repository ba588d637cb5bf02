"""What ``twistd`` lists: ``sorna``, ``sorna-agent`` and ``sorna-worker``. Imports nothing of ours, so that listing plugins stays cheap."""

from twisted.application.service import ServiceMaker

sorna = ServiceMaker(
    "Sorna: manager and API gateway",
    "sorna.tap",
    "Run code in isolated kernels: the REST gateway, the manager and, by default, all they stand on.",
    "sorna",
)
sorna_agent = ServiceMaker(
    "Sorna: agent",
    "sorna.agent_tap",
    "Hold the kernels of one host for the managers of a Sorna installation.",
    "sorna-agent",
)
sorna_worker = ServiceMaker(
    "Sorna: worker",
    "sorna.worker_tap",
    "Serve a share of a server's connections; started by 'sorna --workers N' and never by hand.",
    "sorna-worker",
)
