"""WebSockets as RFC 6455 has them, as the Autobahn suite judges; see ``conformance`` for all of its cases."""

from __future__ import annotations

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.interop.conformance import RIGHT, run_cases
from tests.interop.environments import ClientUnavailable

#: Compression, which this server declines, and the largest messages, which take half of the time.
LEFT_OUT = ("9.*", "12.*", "13.*")


class ConformanceTests(SynchronousTestCase):
    """The echo of the test build."""

    timeout = 300  # the suite is installed first

    def test_frames(self) -> None:
        """Framing, pings, fragments, UTF-8 and closing are as they have to be in every case."""
        try:
            results = run_cases("*", without=LEFT_OUT)
        except ClientUnavailable as error:
            raise SkipTest(str(error)) from None
        self.assertGreater(len(results), 240)
        self.assertEqual({case: result for case, result in results.items() if result not in RIGHT}, {})
