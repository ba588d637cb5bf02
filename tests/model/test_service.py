"""What may be reached in a kernel."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sorna.agent.runners import frames, services
from sorna.model.service import (
    HIGHEST_PORT,
    LOWEST_PORT,
    MOST_PORTS,
    WINDOW,
    NotReachable,
    Service,
    TunnelWish,
    check_ports,
    choose,
    preopened,
    valid_port,
)
from sorna.testing.unit import UnitTestCase

FILES = Service("files", "http", 8009, ("--directory",), ("LANG",))
KNOWN = (FILES, *preopened([8000]))


class ChooseTests(UnitTestCase):
    """From a client's wish to a port."""

    def refused(self, wish: TunnelWish, *words: str) -> None:
        with self.assertRaises(NotReachable) as caught:
            choose(KNOWN, wish)
        for word in words:
            self.assertIn(word, str(caught.exception))

    def test_by_name(self) -> None:
        """An application is found by its name, its port may be said as well, and its options may be chosen."""
        chosen = TunnelWish("files", 8009, {"--directory": ["x"]}, {"LANG": "C"})
        for wish in (TunnelWish("files"), chosen):
            self.assertEqual(choose(KNOWN, wish), FILES)
        self.assertEqual(choose(KNOWN, TunnelWish("8000")), KNOWN[1])

    def test_by_port(self) -> None:
        """What the user's own program listens on is named by its port, as the name or beside one."""
        for wish in (TunnelWish("5000"), TunnelWish("5000", 5000), TunnelWish("dashboard", 5000)):
            self.assertEqual(choose(KNOWN, wish).port, 5000)

    def test_refusals(self) -> None:
        """Each refusal says what is wrong, and what there is."""
        self.refused(TunnelWish("jupyter"), "'jupyter'", "files, 8000")
        self.refused(TunnelWish(""), "''")
        self.refused(TunnelWish("files", 22), "8009")
        self.refused(TunnelWish("5000", 5001), "5000")
        self.refused(TunnelWish("x", 80), "port 80", "1024")
        self.refused(TunnelWish("22"), "port 22")
        self.refused(TunnelWish("65536"), "65536")
        self.refused(TunnelWish("\N{ARABIC-INDIC DIGIT FIVE}000"), "no app")
        self.refused(TunnelWish("files", arguments={"--cgi": []}), "--cgi", "--directory")
        self.refused(TunnelWish("files", environ={"LD_PRELOAD": "x"}), "LD_PRELOAD")
        self.refused(TunnelWish("8000", arguments={"--directory": []}), "none")

    @given(st.text(max_size=8), st.none() | st.integers(-(2**40), 2**40))
    def test_never_out_of_range(self, app: str, port: int | None) -> None:
        """Whatever is wished for, what is found is a port without privileges."""
        try:
            found = choose(KNOWN, TunnelWish(app, port))
        except NotReachable:
            return
        self.assertTrue(valid_port(found.port))
        self.assertTrue(LOWEST_PORT <= found.port <= HIGHEST_PORT)

    def test_named_ports(self) -> None:
        """Ports that are named at creation are few, in range and different."""
        check_ports([LOWEST_PORT, HIGHEST_PORT])
        for ports in ([80], [65536], [8000, 8000], list(range(2000, 2001 + MOST_PORTS))):
            with self.assertRaises(NotReachable):
                check_ports(ports)

    def test_both_sides_of_the_wall_agree(self) -> None:
        """What init knows by itself, because it may import nothing of the model, is what the model says."""
        self.assertEqual(frames.SERVICE_WINDOW, WINDOW)
        self.assertEqual((services.LOWEST_PORT, services.HIGHEST_PORT), (LOWEST_PORT, HIGHEST_PORT))
