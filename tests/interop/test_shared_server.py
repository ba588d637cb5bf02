"""The server that the tests of a process share outlives what those tests do."""

from __future__ import annotations

import atexit
import gc
import http.client
import os
from urllib.parse import urlsplit

from sorna.testing.server import shared_server
from sorna.testing.unit import UnitTestCase


class SharedServerTests(UnitTestCase):
    def test_forks_do_not_end_it(self) -> None:
        """A fork that forgets what its parent left to do at exit, as the Python session of a kernel does, ends no server."""
        server = shared_server()
        pid = os.fork()
        if pid == 0:
            try:
                shared_server.cache_clear()
                atexit._clear()
                del server
                gc.collect()
            finally:
                os._exit(0)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=5)
        self.addCleanup(connection.close)
        connection.request("GET", "/ready")
        self.assertEqual(connection.getresponse().status, 200)
        if server.folder is not None:
            self.assertTrue(server.folder.is_dir())
