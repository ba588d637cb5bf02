"""The HTTP door as one object, put together from what it needs; opens no port and owns none of its dependencies."""

from __future__ import annotations

from functools import partial

from twisted.internet.interfaces import IReactorTime

from sorna.gateway.administration import AdministrationRoutes
from sorna.gateway.authentication import Authentication
from sorna.gateway.document import document_of
from sorna.gateway.enrolment import EnrolmentRoutes
from sorna.gateway.events import EventRoutes
from sorna.gateway.files import FileRoutes
from sorna.gateway.folder_files import FolderFileRoutes
from sorna.gateway.folder_sharing import FolderSharingRoutes
from sorna.gateway.folder_storage import FolderStorageRoutes
from sorna.gateway.folders import FolderRoutes
from sorna.gateway.gate import Gate
from sorna.gateway.interfaces import Administration, Kernels, Keypairs, Operations, RateLimits, Readiness
from sorna.gateway.kernels import KernelRoutes
from sorna.gateway.operations import OperationRoutes
from sorna.gateway.outputs import OutputRoutes
from sorna.gateway.receiving import Receivers
from sorna.gateway.reference import ReferenceRoutes
from sorna.gateway.request import LimitedSite, ReadingLimits
from sorna.gateway.root import RootRoutes
from sorna.gateway.router import Application
from sorna.gateway.run_streams import RunRoutes
from sorna.gateway.sessions import SessionRoutes
from sorna.gateway.terminals import TerminalRoutes
from sorna.gateway.transfers import TransferRoutes
from sorna.gateway.tunnels import TunnelRoutes
from sorna.gateway.websockets import WebSocketLimits, WebSockets
from sorna.manager.enrolments import Enrolments
from sorna.manager.folders import Folders
from sorna.manager.transfers import Transfers


def make_application(
    reactor: IReactorTime,
    *,
    kernels: Kernels,
    folders: Folders,
    transfers: Transfers,
    administration: Administration,
    enrolments: Enrolments,
    keypairs: Keypairs,
    rate_limits: RateLimits,
    operations: Operations,
    readiness: Readiness,
    tls: bool = False,
    worker: int = 1,
    websocket_limits: WebSocketLimits | None = None,
) -> Application:
    """Put the routes of every area behind one gate; the result is the root resource."""
    gate = Gate(Authentication(reactor, keypairs), rate_limits, readiness)
    areas = (
        RootRoutes.router.bind(RootRoutes()),
        KernelRoutes.router.bind(KernelRoutes(kernels, operations)),
        SessionRoutes.router.bind(SessionRoutes(administration)),
        FileRoutes.router.bind(FileRoutes(kernels)),
        RunRoutes.router.bind(RunRoutes(kernels)),
        FolderRoutes.router.bind(FolderRoutes(folders, operations)),
        FolderSharingRoutes.router.bind(FolderSharingRoutes(folders, operations)),
        FolderStorageRoutes.router.bind(FolderStorageRoutes(administration, folders.storage.storage_id)),
        FolderFileRoutes.router.bind(FolderFileRoutes(folders, operations)),
        TransferRoutes.router.bind(TransferRoutes(transfers, operations, tls)),
        OutputRoutes.router.bind(OutputRoutes(kernels)),
        EventRoutes.router.bind(EventRoutes(kernels, reactor)),
        TerminalRoutes.router.bind(TerminalRoutes(kernels, operations)),
        TunnelRoutes.router.bind(TunnelRoutes(kernels, operations, reactor)),
        AdministrationRoutes.router.bind(AdministrationRoutes(administration, operations)),
        EnrolmentRoutes.router.bind(EnrolmentRoutes(enrolments, operations)),
        OperationRoutes.router.bind(OperationRoutes(readiness, worker)),
    )
    routes = [bound for area in areas for bound in area]
    described = [*(bound.route for bound in routes), *ReferenceRoutes.router.routes]
    reference = ReferenceRoutes(partial(document_of, described))
    websockets = WebSockets(reactor, websocket_limits or WebSocketLimits())
    return Application(gate, websockets, keypairs, [*routes, *ReferenceRoutes.router.bind(reference)])


def make_site(
    reactor: IReactorTime,
    *,
    kernels: Kernels,
    folders: Folders,
    transfers: Transfers,
    administration: Administration,
    enrolments: Enrolments,
    keypairs: Keypairs,
    rate_limits: RateLimits,
    operations: Operations,
    readiness: Readiness,
    tls: bool = False,
    worker: int = 1,
    limits: ReadingLimits | None = None,
    websocket_limits: WebSocketLimits | None = None,
) -> LimitedSite:
    """Make the factory of the HTTP door's connections, for any stream endpoint, with TLS or without.

    Connections that are open when the port closes go on; drain ``operations`` and then drop them.
    """
    application = make_application(
        reactor,
        kernels=kernels,
        folders=folders,
        transfers=transfers,
        administration=administration,
        enrolments=enrolments,
        keypairs=keypairs,
        rate_limits=rate_limits,
        operations=operations,
        readiness=readiness,
        tls=tls,
        worker=worker,
        websocket_limits=websocket_limits,
    )
    receivers = Receivers(transfers, operations)
    return LimitedSite(application, reactor, limits or ReadingLimits(), application.going_away, receivers)
