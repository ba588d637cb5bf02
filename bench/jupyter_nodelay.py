"""Starts a Jupyter Kernel Gateway whose connections never wait to fill a packet (TCP_NODELAY); see ``bench/jupyter.py``.

Run by the Python that the gateway is installed in. Knows that program's libraries and nothing of ours.
"""

from __future__ import annotations

import importlib
from typing import Any


def never_wait() -> None:
    """Let every stream of Tornado keep the option from its first byte on; by default it is taken back after a response."""
    stream = importlib.import_module("tornado.iostream").IOStream
    server = importlib.import_module("tornado.httpserver").HTTPServer
    set_option, serve = stream.set_nodelay, server.handle_stream

    def keep_option(self: Any, _value: object) -> None:
        set_option(self, True)

    def serve_at_once(self: Any, opened: Any, address: object) -> None:
        opened.set_nodelay(True)
        serve(self, opened, address)

    stream.set_nodelay = keep_option
    server.handle_stream = serve_at_once


if __name__ == "__main__":
    never_wait()
    importlib.import_module("kernel_gateway").launch_instance()
