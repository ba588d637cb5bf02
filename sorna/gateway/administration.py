"""``POST /admin/graphql``: keypairs, kernels, agents, policies and usage, for administrators and for users themselves.

Source: section 2.12 of the REST interface's specification: the answer is the bare data. What changes something is detached
from its request, as everywhere; a query that nobody waits for any more is given up.
"""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen
from graphql import OperationType

from sorna.gateway.call import Call, Reply, json_reply
from sorna.gateway.graphql.asking import Asking
from sorna.gateway.graphql.bounds import check_cost, operation_of
from sorna.gateway.graphql.schema import read_query
from sorna.gateway.interfaces import Administration, Operations
from sorna.gateway.parameters import Parameters
from sorna.gateway.router import Router

#: Clients of 22.03 and later know it by the shorter name.
_PATHS = ("/admin/graphql", "/admin/gql")


@frozen
class AdministrationRoutes:
    """The one route of the administration."""

    administration: Administration
    operations: Operations

    router: ClassVar[Router[AdministrationRoutes]] = Router()

    @router.route("POST", *_PATHS)
    async def query(self, call: Call) -> Reply:
        """Answer a query, or do a mutation of an administrator."""
        body = Parameters(call.json_object())
        keypair = call.caller
        query = read_query(body.required_text("query"), is_admin=keypair.is_admin)
        name = body.optional_text("operationName", 64)
        variables = body.inner("variables").content
        operation = operation_of(query.document, name)
        check_cost(query.schema, query.document, operation, variables)
        asking = Asking(self.administration, keypair.access_key, is_admin=keypair.is_admin)
        work = asking.execute(query.schema, query.document, variables, name)
        if operation.operation is OperationType.MUTATION:
            return json_reply(await self.operations.detach(work))
        return json_reply(await work)
