"""The version query and the authorization test: the two routes a client tries first."""

from __future__ import annotations

from typing import ClassVar

from sorna.errors import InvalidAuthentication, InvalidRequest
from sorna.gateway.call import Access, Call, Reply, json_reply
from sorna.gateway.router import API_VERSION, Router


class RootRoutes:
    """What needs no kernel, and works before the process is ready."""

    router: ClassVar[Router[RootRoutes]] = Router()

    @router.route("GET", "", access=Access.PUBLIC)
    async def version(self, _call: Call) -> Reply:
        """Tell the newest version this server knows, not the one of the path; clients take it as a handshake."""
        return json_reply({"version": API_VERSION})

    @router.route("GET", "/authorize", "/auth", "/auth/test")
    @router.route("POST", "/auth", "/auth/test")
    async def authorize(self, call: Call) -> Reply:
        """Tell a client that its signature is right, and give its ``echo`` back."""
        try:
            content = call.json_object()
        except InvalidRequest as error:
            raise InvalidAuthentication(error.detail) from None
        answer = {"authorized": "yes"}
        if "echo" in content:
            answer["echo"] = content["echo"]
        return json_reply(answer)

    @router.route("GET", "/manager/announcement")
    async def announcement(self, _call: Call) -> Reply:
        """Tell that nothing is announced; clients of 19.09 and later ask before everything else."""
        return json_reply({"enabled": False, "message": ""})
