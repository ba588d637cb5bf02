"""What an agent may be called and where it may say it is; pure rules on texts."""

from __future__ import annotations

import re
from ipaddress import ip_address

_ENDPOINT = re.compile(r"tcp://(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+)):(?P<port>[0-9]{1,5})", re.ASCII)
# Redis has keys of agents by these names; "instances" and "....kernels" are keys of the layout itself.
_AGENT_NAME = re.compile(r"(?!instances\Z)(?!.*\.kernels\Z)[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def valid_endpoint(text: str) -> bool:
    """Tell whether a text is ``tcp://ADDRESS:PORT`` with an IP address.

    Host names are refused because ZeroMQ would look them up in the thread that moves everybody's messages, and other
    transports because what a peer advertises may name a TCP address and nothing of this host.
    """
    match = _ENDPOINT.fullmatch(text)
    if match is None or not 0 < int(match["port"]) <= 65535:
        return False
    try:
        return ip_address(match["six"] or match["four"]).version == (6 if match["six"] else 4)
    except ValueError:
        return False


def valid_agent_name(text: str) -> bool:
    """Tell whether a text may be an agent's id: up to 64 of ``A-Z a-z 0-9 . _ -``, with a letter or a digit first."""
    return _AGENT_NAME.fullmatch(text) is not None
