"""The bounded log: a model-based check that no byte is lost or doubled, and its bounds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sorna.agent.output_log import TAIL_PIECE, CreditWindow, OutputLog, Piece, Tail
from sorna.agent.runners.frames import EMIT, STDERR, STDOUT
from sorna.testing.unit import UnitTestCase

KINDS = st.sampled_from([STDOUT, STDERR, EMIT])
CONTENT = st.text(max_size=30).map(str.encode)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), KINDS, CONTENT),
        st.tuples(st.just("take"), st.integers(1, 40)),
        st.tuples(st.just("seal")),
    ),
    max_size=60,
)


def flat(piece: Piece) -> list[tuple[int, int]]:
    """Give one (kind, byte) for each byte of a piece."""
    return [(record.kind, byte) for record in piece.records for byte in record.content]


class OutputLogTests(UnitTestCase):
    @settings(max_examples=150, deadline=None)
    @given(STEPS)
    def test_every_byte_once_and_in_order(self, steps: list[tuple[str, int, bytes]]) -> None:
        """Whatever is appended and taken in whatever order, the pieces together are what was appended."""
        log = OutputLog(keep=1 << 20)
        written: list[tuple[int, int]] = []
        read: list[tuple[int, int]] = []
        for step, *arguments in steps:
            if step == "append":
                kind, content = arguments
                assert isinstance(content, bytes)
                assert isinstance(kind, int)
                log.append(kind, content)
                written += [(kind, byte) for byte in content]
            elif step == "take":
                most = arguments[0]
                assert isinstance(most, int)
                piece = log.take(most)
                self.assertEqual(piece.first_seq, len(read))
                read += flat(piece)
                self.assertEqual(piece.next_seq, len(read))
                if len(flat(piece)) > most:
                    self.assertEqual([record.kind for record in piece.records], [EMIT])
            else:
                self.assertEqual(log.seal(), len(written))
            self.assertEqual(log.unread, len(written) - len(read))
            self.assertEqual(read, written[: len(read)])
        self.assertEqual(flat(log.read_from(0, 1 << 20)), written)
        while log.unread:
            read += flat(log.take(1 << 20))
        self.assertEqual(read, written)
        self.assertEqual(log.pressure, 0)

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.tuples(KINDS, CONTENT), max_size=20), st.integers(0, 700), st.integers(1, 100), st.integers(0, 900)
    )
    def test_replay(self, appended: list[tuple[int, bytes]], seq: int, most: int, keep: int) -> None:
        """A replay begins where it was asked to, or says how much is missing; it never invents a byte."""
        log = OutputLog(keep)
        written: list[tuple[int, int]] = []
        for kind, content in appended:
            log.append(kind, content)
            written += [(kind, byte) for byte in content]
            log.take(1 << 20)
        piece = log.read_from(seq, most)
        self.assertEqual(flat(piece), written[piece.first_seq : piece.next_seq])
        wanted = min(seq, len(written))
        if piece.missing:
            self.assertEqual(piece.first_seq, wanted + piece.missing)
        else:
            self.assertLessEqual(piece.first_seq, wanted)

    @settings(max_examples=100, deadline=None)
    @given(st.text(min_size=1, max_size=60), st.integers(4, 20))
    def test_characters_are_not_cut(self, text: str, most: int) -> None:
        """Pieces of valid text are valid text."""
        log = OutputLog()
        log.append(STDOUT, text.encode("utf-8", "ignore"))
        pieces = []
        while log.unread:
            pieces.append(b"".join(record.content for record in log.take(most).records).decode())
        self.assertEqual("".join(pieces), text)

    def test_stops_at_a_mark(self) -> None:
        """Taking stops at a mark, however much more there is."""
        log = OutputLog()
        log.append(STDOUT, b"build")
        mark = log.seal()
        log.append(STDOUT, b"run")
        self.assertEqual(flat(log.take(100, before=mark)), [(STDOUT, byte) for byte in b"build"])
        self.assertEqual(log.unread, 3)

    def test_what_was_read_is_kept_up_to_a_bound(self) -> None:
        """The oldest output that was read goes first, and the replay says how much."""
        log = OutputLog(keep=1000)
        for _ in range(10):
            log.append(STDOUT, b"x" * 300)
            log.take(1000)
        self.assertLessEqual(log.cost, 1000)
        piece = log.read_from(0, 10_000)
        self.assertEqual((piece.first_seq, piece.missing, piece.next_seq), (2400, 2400, 3000))

    def test_small_pieces_are_merged(self) -> None:
        """A thousand prints to one stream cost about what their bytes cost."""
        log = OutputLog()
        for _ in range(1000):
            log.append(STDOUT, b"x")
        self.assertLess(log.pressure, 1200)
        self.assertEqual(len(log.take(2000).records), 1)

    def test_move(self) -> None:
        """What is unread can be moved in front of another log."""
        background, log = OutputLog(keep=0), OutputLog()
        background.append(STDOUT, b"a")
        background.append(STDERR, b"b")
        background.move_unread_to(log)
        self.assertEqual((background.unread, background.pressure), (0, 0))
        self.assertEqual([record.content for record in log.take(10).records], [b"a", b"b"])


class CreditWindowTests(UnitTestCase):
    def test_grants_what_there_is_room_for(self) -> None:
        """Credit follows room, in steps that are worth a frame, and never passes the window."""
        credit = CreditWindow(100)
        self.assertEqual(credit.grant(1000), 100)
        self.assertTrue(credit.spend(20))
        self.assertEqual(credit.grant(1000), 0)
        self.assertTrue(credit.spend(20))
        self.assertEqual(credit.grant(1000), 40)
        self.assertTrue(credit.spend(500))
        self.assertFalse(credit.spend(1))
        self.assertEqual(credit.grant(10), 411)
        self.assertEqual(credit.outstanding, 10)


class TailTests(UnitTestCase):
    def test_keeps_the_end(self) -> None:
        """The end is kept, from the beginning of a line."""
        tail = Tail(keep=10)
        for number in range(20):
            tail.append(b"%d\n" % number)
        self.assertEqual(tail.text(), "17\n18\n19\n")
        tail.append(b"x" * 50)
        self.assertEqual(tail.text(), "x" * 10)

    @given(st.lists(st.binary(min_size=1, max_size=2 * TAIL_PIECE), max_size=30), st.integers(1, 3 * TAIL_PIECE))
    def test_is_the_end_of_everything(self, pieces: list[bytes], keep: int) -> None:
        """Whatever the sizes of the pieces, the end of all of them is there, and not much more."""
        tail = Tail(keep)
        for piece in pieces:
            tail.append(piece)
        whole = b"".join(pieces)
        kept = tail.carry()
        self.assertEqual(kept, whole[len(whole) - len(kept) :])
        self.assertGreaterEqual(len(kept), min(keep, len(whole)))
        self.assertLess(len(kept), keep + 2 * TAIL_PIECE)
