"""Which host a client is told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sorna.legacy.addresses import Addresses, local_address
from sorna.testing.unit import UnitTestCase


class AddressesTests(UnitTestCase):
    def test_bound_address(self) -> None:
        """Who came in by the only address is told that one."""
        self.assertEqual(Addresses("127.0.0.1").endpoint(5, "127.0.0.9"), "tcp://127.0.0.1:5")
        self.assertEqual(Addresses("192.0.2.7").endpoint(5, None), "tcp://192.0.2.7:5")
        self.assertEqual(Addresses("::1").endpoint(5, "::1"), "tcp://[::1]:5")

    def test_override(self) -> None:
        """The operator knows better than the host."""
        for interface in ("127.0.0.1", "0.0.0.0", "::"):
            self.assertEqual(Addresses(interface, "203.0.113.5").endpoint(6001, "127.0.0.1"), "tcp://203.0.113.5:6001")
        self.assertEqual(Addresses("0.0.0.0", "2001:db8::5").endpoint(1, None), "tcp://[2001:db8::5]:1")

    def test_every_address_bound(self) -> None:
        """A client is told the address on its own route: a local one, one that is not a network's name for itself."""
        self.assertEqual(Addresses("0.0.0.0").endpoint(5, "127.0.0.1"), "tcp://127.0.0.1:5")
        self.assertEqual(Addresses("::").endpoint(5, "::ffff:127.0.0.1"), "tcp://127.0.0.1:5")
        self.assertEqual(Addresses("0.0.0.0").endpoint(5, None), "tcp://127.0.0.1:5")
        self.assertEqual(Addresses("::").endpoint(5, "nonsense"), "tcp://[::1]:5")

    @given(st.ip_addresses().map(str) | st.text(max_size=20))
    def test_total(self, peer: str) -> None:
        """Whatever ZeroMQ says of a peer, there is an address or none."""
        address = local_address(peer)
        self.assertTrue(address is None or address)
        self.assertTrue(Addresses("0.0.0.0").endpoint(1, peer).startswith("tcp://"))
