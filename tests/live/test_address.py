"""Reading addresses of Redis servers."""

from __future__ import annotations

from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.testing import MemoryReactorClock

from sorna.live.address import RedisAddress, parse_redis_address
from sorna.testing.unit import UnitTestCase


class ParseRedisAddressTests(UnitTestCase):
    def test_spellings(self) -> None:
        """Every spelling that the options document is understood."""
        for text, expected in {
            "localhost": RedisAddress("localhost"),
            "localhost:6380": RedisAddress("localhost", 6380),
            "10.0.0.1:1": RedisAddress("10.0.0.1", 1),
            "[::1]:6380": RedisAddress("::1", 6380),
            "[::1]": RedisAddress("::1"),
            "redis://db": RedisAddress("db"),
            "redis://db:7/": RedisAddress("db", 7),
            "redis://:pass@db:7": RedisAddress("db", 7, password="pass"),
            "redis://me:p%40%3A@db": RedisAddress("db", username="me", password="p@:"),
            "unix:///run/redis.sock": RedisAddress(path="/run/redis.sock"),
            "unix://:p@/run/redis.sock": RedisAddress(path="/run/redis.sock", password="p"),
            "unix:///run/a%20b.sock": RedisAddress(path="/run/a b.sock"),
        }.items():
            self.assertEqual(parse_redis_address(text), expected, text)

    def test_malformed(self) -> None:
        """Anything else is refused without repeating it."""
        for text in (
            "",
            ":6379",
            "host:port",
            "host:99999",
            "http://host",
            "rediss://host",
            "redis://user@host",
            "redis://:hush@host/3",
            "redis://:hush@host?db=3",
            "redis://:hush@host#x",
            "redis://[::1",
            "unix://relative",
            "unix://host/path",
            "unix:///" + "x" * 200,
            "unix:///a%00b",
        ):
            error = self.assertRaises(ValueError, parse_redis_address, text)
            self.assertNotIn("hush", str(error))

    @given(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8"), min_size=1))
    def test_any_login(self, username: str, password: str) -> None:
        """Any user and password can be written, percent-encoded."""
        address = parse_redis_address(f"redis://{quote(username, safe='')}:{quote(password, safe='')}@host")
        self.assertEqual((address.username, address.password), (username, password))

    def test_password_is_not_shown(self) -> None:
        """Neither form of text has the password."""
        for text in ("redis://:hush@db:7", "redis://:hush@[::1]:7", "unix://:hush@/run/redis.sock"):
            address = parse_redis_address(text)
            self.assertNotIn("hush", f"{address} {address!r}")
        self.assertEqual(str(parse_redis_address("[::1]:7")), "[::1]:7")

    def test_endpoints(self) -> None:
        """A path gives a unix endpoint, a host one that resolves names."""
        reactor = MemoryReactorClock()
        self.assertIsInstance(RedisAddress("db").endpoint(reactor, 1), HostnameEndpoint)
        self.assertIsInstance(RedisAddress(path="/s").endpoint(reactor, 1), UNIXClientEndpoint)
