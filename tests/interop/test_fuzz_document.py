"""What schemathesis makes of the OpenAPI document; the long form is a command, see ``fuzz_document``."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.interop.fuzz_document import Fuzzing
from tests.interop.memory_gateway import USER, running_test_build

REQUESTS = 400


class FuzzDocumentTests(SynchronousTestCase):
    """Requests as the document has them, and as it has them not."""

    def test_no_answer_breaks_a_rule(self) -> None:
        """No answer is a fault of the server, none differs from the document, and nobody is served who is nobody."""
        with running_test_build() as ports:
            fuzzing = Fuzzing(f"http://127.0.0.1:{ports.door}", USER)
            fuzzing.run(REQUESTS, start=1)
        self.assertGreaterEqual(fuzzing.statuses.total(), REQUESTS)
        self.assertGreater(fuzzing.refused, REQUESTS // 10)
        # Those that are right in everything do reach the routes.
        self.assertLessEqual({200, 201, 204, 400, 401, 404}, set(fuzzing.statuses))
