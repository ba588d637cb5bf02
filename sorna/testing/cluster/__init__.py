"""Many hosts on one machine: a real Sorna of several processes that tests and operators can start, kill, freeze and cut.

.. code-block:: python

    with make_cluster(managers=2, agents=3) as cluster:      # on loopback; network=Namespaces() for hosts of their own
        first, second = cluster.managers                     # .endpoint, .address, .port
        client = cluster.client(first, reactor.seconds)      # create, execute, run, upload, destroy; the administrator's
        first.kill()                                         # kill -9; also stop() and start()
        cluster.agents[0].freeze()                           # SIGSTOP; thaw()
        cluster.redis.stop(); cluster.redis.empty(); cluster.redis.start()
        cluster.postgres.kill_backends()
        cluster.network.cut("m1", "from")                     # by part name, with Namespaces only; slow(), mend()
        cluster.heal()                                       # everything runs and is connected again
        cluster.agents[0].log                                # what it said

All of it blocks, for bounded times. ``Part.ready()`` looks once, ``Part.wait_until_ready()`` waits.
"""

from sorna.testing.cluster.client import Answer, Client, Progress, RequestRefused
from sorna.testing.cluster.cluster import Cluster, make_cluster
from sorna.testing.cluster.network import Loopback, Namespaces, NamespacesUnavailable, Network
from sorna.testing.cluster.parts import Agent, Database, Manager, Part, PartDidNotStart, until

__all__ = [
    "Agent",
    "Answer",
    "Client",
    "Cluster",
    "Database",
    "Loopback",
    "Manager",
    "Namespaces",
    "NamespacesUnavailable",
    "Network",
    "Part",
    "PartDidNotStart",
    "Progress",
    "RequestRefused",
    "make_cluster",
    "until",
]
