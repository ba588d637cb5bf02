"""The version query and the authorization test: the two routes a client tries first."""

from __future__ import annotations

from typing import ClassVar

from sorna.errors import InvalidAuthentication, InvalidRequest
from sorna.gateway.call import Access, Call, Reply, json_reply
from sorna.gateway.described import ANY, FLAG, TEXT, Described, exactly, json_content, one_of, open_object
from sorna.gateway.router import API_VERSION, Router

_AUTHORIZED = Described(
    body=json_content(open_object(echo=ANY)),
    answers={
        200: json_content(
            {**exactly(authorized=one_of("yes"), echo=ANY), "required": ["authorized"]},
        )
    },
    raises=(InvalidAuthentication,),
)
_VERSION = Described(answers={200: json_content(exactly(version=TEXT))})
_ANNOUNCEMENT = Described(answers={200: json_content(exactly(enabled=FLAG, message=TEXT))})


class RootRoutes:
    """What needs no kernel, and works before the process is ready."""

    router: ClassVar[Router[RootRoutes]] = Router()

    @router.route("GET", "", access=Access.PUBLIC, described=_VERSION)
    async def version(self, _call: Call) -> Reply:
        """Tell the newest version this server knows, not the one of the path; clients take it as a handshake."""
        return json_reply({"version": API_VERSION})

    @router.route("GET", "/authorize", "/auth", "/auth/test", described=_AUTHORIZED)
    @router.route("POST", "/auth", "/auth/test", described=_AUTHORIZED)
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

    @router.route("GET", "/manager/announcement", described=_ANNOUNCEMENT)
    async def announcement(self, _call: Call) -> Reply:
        """Tell that nothing is announced; clients of 19.09 and later ask before everything else."""
        return json_reply({"enabled": False, "message": ""})
