"""Asks the server what its OpenAPI document says can be asked: ``python -m tests.interop.fuzz_document --requests 20000``.

Requests are made by schemathesis, right ones and wrong ones, for each operation in turn, and signed as they go out; every
fifth is not, or with a wrong secret. No answer may have a status of 500 or more, every answer must be one that the document
describes, in status, media type and schema, and nobody without a right signature may be served. The first answer
that breaks one is printed with its request, and the exit status is 1.

It runs against the test build, or with ``--endpoint``, ``--access-key`` and ``--secret-key`` against a running server, whose
keypair needs a rate limit to match. Answers that do not end, and handshakes, are ``fuzz_streams``'s.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import sys
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import urlsplit

import requests
import schemathesis
from attrs import define, evolve, field, frozen
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from requests.auth import AuthBase
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from twisted.internet import reactor  # noqa: TID251 - a program of its own

from sorna.model.keypair import Keypair
from sorna.testing.gateway import Signer
from tests.interop.fuzz_streams import Handshake, handshakes, listen, shake
from tests.interop.memory_gateway import USER, running_test_build

TIMEOUT = 20.0  # seconds for one request
#: Of as many requests one goes out without a right signature.
UNSIGNED = 5
_ENDLESS = ("/events", "/events/session")
#: What Sorna does not do, it says.
_SAID = frozenset({501})
TOKEN = "fuzz-document-1"
_CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

# What pieces of an upload are called; it does not know that they are bytes like any others.
schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")


class Broken(Exception):
    """An answer breaks a rule; the text says which and how to see it again."""


@frozen
class Signing(AuthBase):
    """Signs what goes out as it goes out."""

    signer: Signer

    def __call__(self, prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        body: Any = prepared.body or b""  # one of many things, but never a stream here
        content = body.encode("utf-8") if isinstance(body, str) else body
        given_type = prepared.headers.get("Content-Type", "application/octet-stream")
        content_type = given_type.encode("latin-1") if isinstance(given_type, str) else given_type
        assert prepared.method is not None
        headers = self.signer.headers(prepared.method.encode(), prepared.path_url.encode(), content, content_type)
        prepared.headers.update({name.decode(): value.decode("latin-1") for name, value in headers.items()})
        return prepared


@define
class Fuzzing:
    """One run against one server."""

    endpoint: str
    keypair: Keypair
    statuses: collections.Counter[int] = field(factory=collections.Counter)
    refused: int = 0
    _numbers: Iterator[int] = field(factory=itertools.count)

    def run(self, count: int, start: int) -> None:
        """Make so many requests or a few more. :raises Broken: at the first answer that breaks a rule."""
        schema = schemathesis.openapi.from_url(f"{self.endpoint}/openapi.json")
        operations = [result.ok() for result in cast("list[Ok[Any]]", list(schema.get_all_operations()))]
        asked = operations
        with requests.Session() as session:
            # An operation that takes little soon has nothing new to be asked, so the others are gone through again.
            while self.statuses.total() < count:
                each = max(2, -(-(count - self.statuses.total()) // (2 * len(asked))))
                for operation, mode in itertools.product(asked, (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)):
                    with contextlib.suppress(Unsatisfiable):  # what takes nothing cannot be asked wrongly
                        self._fuzz(session, operation, mode, each, start)
                for operation in filter(_opens_websockets, asked):
                    self._shake(operation, each, start)
                start += 1

    def _shake(self, operation: APIOperation[Any, Any, Any, Any], count: int, start: int) -> None:
        """Ask for WebSockets rightly and wrongly."""

        @seed(start)
        @settings(max_examples=count, deadline=None, database=None, phases=(Phase.generate,))
        @given(handshakes())
        def ask(wanted: Handshake) -> None:
            signed = next(self._numbers) % UNSIGNED != 0
            signer = self._signer() if signed else evolve(self._signer(), keypair=evolve(self.keypair, secret_key="x"))
            path = operation.path.replace("{reference}", TOKEN).replace("{run_id}", "run-1")
            answer = shake(self.endpoint, path, wanted, Signing(signer), TIMEOUT, signed=signed)
            self._count(answer, f"{operation.path} {wanted}")
            self.refused += not signed

        ask()

    def _signer(self) -> Signer:
        return Signer(reactor, self.keypair, urlsplit(self.endpoint).netloc.encode(), version=b"v4.20181215")

    def _count(self, response: Any, request: str) -> None:
        self.statuses[response.status_code] += 1
        if response.status_code >= 500 and response.status_code not in _SAID:
            raise Broken(f"{response.status_code} {response.text[:300]}\n{request}")

    def _fuzz(
        self,
        session: requests.Session,
        operation: APIOperation[Any, Any, Any, Any],
        mode: GenerationMode,
        count: int,
        start: int,
    ) -> None:
        @seed(start)
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Case[Any]) -> None:
            self._ask(session, case)

        ask()

    def _ask(self, session: requests.Session, case: Case[Any]) -> None:
        number = next(self._numbers)
        signer = self._signer()
        security = str(case.operation.definition.raw.get("security") or "")
        unsigned = number % UNSIGNED == 0 and bool(security)
        if number % 3 == 0:
            self._aim(session, case, signer, token="token" in security and not unsigned)
        if number % 2 and isinstance(case.body, dict) and "image" in case.body:
            case.body["image"] = "python3"
        if unsigned:
            signer = evolve(signer, keypair=evolve(self.keypair, secret_key="guess"))
        auth = None if unsigned and number % 2 else Signing(signer)
        response = self._answer(session, case, auth)
        if unsigned:
            self.refused += 1
            if response.status_code < 400:
                raise Broken(f"served without a signature: {response.status_code}\n{case.as_curl_command()}")
        if response.status_code == 201:
            # A keypair may have few sessions and folders, and then nothing more could be learnt about creating them.
            made = response.json()
            for path in (f"/session/{made.get('sessionId')}", f"/folder/{made.get('id', made.get('folderId'))}"):
                if "None" not in path and TOKEN not in made.values():
                    session.delete(self.endpoint + path, auth=auth, timeout=TIMEOUT)

    def _answer(self, session: requests.Session, case: Case[Any], auth: AuthBase | None) -> Any:
        """Send a request, and see that its answer is as it is described."""
        endless = case.operation.path.endswith(_ENDLESS)
        if endless:
            response: Any = listen(session, case, self.endpoint, auth, TIMEOUT)
        else:
            response = case.call(base_url=self.endpoint, session=session, auth=auth, timeout=TIMEOUT)
        self._count(response, case.as_curl_command())
        if not (endless and response.status_code == 200):
            case.validate_response(response, checks=_CHECKS)
        return response

    def _aim(self, session: requests.Session, case: Case[Any], signer: Signer, *, token: bool) -> None:
        """Let a request be about something that is there; else hardly one would be."""

        def post(path: str, content: Any) -> Any:
            answer = session.post(self.endpoint + path, json=content, auth=Signing(signer), timeout=TIMEOUT)
            if answer.status_code >= 500:
                raise Broken(f"{answer.status_code} {answer.text[:300]} to {path}")
            return answer.json()

        if "reference" in case.path_parameters:
            post("/session", {"image": "python3", "name": TOKEN})
            case.path_parameters["reference"] = TOKEN
        if "folder" in case.path_parameters or token:
            post("/folders", {"name": TOKEN})
        if "folder" in case.path_parameters:
            case.path_parameters["folder"] = TOKEN
        if token:
            post(f"/folders/{TOKEN}/mkdir", {"path": "d"})
            path = "d/f" if case.path.endswith("upload") else "d"
            answer = post(f"/folders/{TOKEN}/request-{case.path.rpartition('/')[2]}", {"path": path, "size": 3})
            case.query["token"] = answer.get("token", "")


def _opens_websockets(operation: APIOperation[Any, Any, Any, Any]) -> bool:
    return "101" in operation.definition.raw["responses"]


@contextlib.contextmanager
def server_of(arguments: argparse.Namespace) -> Iterator[tuple[str, Keypair]]:
    """Give the server to ask, and the keypair to do it with."""
    if arguments.endpoint:
        yield arguments.endpoint.rstrip("/"), Keypair(arguments.access_key, arguments.secret_key)
    else:
        with running_test_build() as ports:
            yield f"http://127.0.0.1:{ports.door}", USER


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--endpoint")
    parser.add_argument("--access-key", default=USER.access_key)
    parser.add_argument("--secret-key", default=USER.secret_key)
    arguments = parser.parse_args()
    with server_of(arguments) as (endpoint, keypair):
        fuzzing = Fuzzing(endpoint, keypair)
        try:
            fuzzing.run(arguments.requests, arguments.seed)
        except (Exception, FailureGroup) as error:  # noqa: BLE001 - whatever it is goes to whoever runs this
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            for inner in getattr(error, "exceptions", ()):
                sys.stderr.write(f"{inner}\n")
            return 1
        finally:
            counts = ", ".join(f"{status}: {count}" for status, count in sorted(fuzzing.statuses.items()))
            sys.stdout.write(
                f"{fuzzing.statuses.total()} requests, {fuzzing.refused} without a right signature; {counts}\n"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
