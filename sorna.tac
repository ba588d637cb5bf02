"""``twistd -y sorna.tac``: the server from ``SORNA_*`` variables alone, the same service tree as ``twistd sorna``."""

from twisted.application.service import Application

from sorna.tap import Options, makeService

application = Application("sorna")
_options = Options()
_options.parseOptions([])
makeService(_options).setServiceParent(application)
