"""The bounded log of one run's output, and the credit that keeps it bounded.

Knows nothing of runs, calls or sockets. What was printed and not read yet is never dropped: when it passes a bound the
owner grants no more credit, so the program blocks in its ``write``. What was read stays for a replay up to another bound.

Note [Sequence numbers]
~~~~~~~~~~~~~~~~~~~~~~~
The number of a record is the position of its first byte in the run's output, counted over all streams. So neighbouring
pieces of one stream can be merged and cut without renumbering anything, a reader that lost an answer asks again with the
last ``next_seq`` it saw, and how many bytes a replay cannot give any more is a subtraction. Records of text can be cut at
any character; EMIT records are given whole or not at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import define, frozen

from sorna.agent.runners.frames import EMIT

KIB = 1024
MERGE_UP_TO = 64 * KIB
# What one record costs besides its bytes: a program that prints single bytes to alternating streams must not cost the
# agent many times of what the bound says.
RECORD_COST = 64
LONGEST_CHARACTER = 4
TAIL_PIECE = 8 * KIB


@frozen
class Record:
    """A run of bytes of one stream. ``kind`` is STDOUT, STDERR or EMIT of ``runners/frames.py``."""

    seq: int
    kind: int
    content: bytes


@frozen
class Piece:
    """Neighbouring records.

    :ivar next_seq: the number to ask for next.
    :ivar missing: how many bytes before the first record were asked for and are no longer kept.
    """

    first_seq: int
    next_seq: int
    records: tuple[Record, ...]
    missing: int = 0


@define
class _Growing:
    """The last record of a log, which may still grow."""

    seq: int
    kind: int
    content: bytearray


def _cut(content: bytes | bytearray, most: int) -> int:
    """Tell where to cut text so that at most ``most`` bytes stay and no UTF-8 character is cut, if it is valid UTF-8."""
    if len(content) <= most:
        return len(content)
    for position in range(most, max(most - 4, 0), -1):
        if content[position] & 0xC0 != 0x80:
            return position
    return most


class OutputLog:
    """One run's output. Sizes in bytes; ``keep`` bounds what stays for a replay after it was read."""

    def __init__(self, keep: int = 1024 * KIB) -> None:
        self._keep = keep
        self._read: deque[Record] = deque()
        self._read_cost = 0
        self._unread: deque[Record] = deque()
        self._tail: _Growing | None = None
        self._unread_records = 0
        self.cursor = 0
        self.next_seq = 0
        self.last_taken = 0

    @property
    def unread(self) -> int:
        """How many bytes were not read yet."""
        return self.next_seq - self.cursor

    @property
    def pressure(self) -> int:
        """What the unread output costs: its bytes and something per record."""
        return self.unread + RECORD_COST * self._unread_records

    @property
    def cost(self) -> int:
        """What the whole log costs, kept output included."""
        return self.pressure + self._read_cost

    def append(self, kind: int, content: bytes) -> None:
        """Add output as it arrived."""
        if not content:
            return
        tail = self._tail
        if tail is not None and tail.kind == kind and len(tail.content) + len(content) <= MERGE_UP_TO:
            tail.content += content
        else:
            self.seal()
            if kind != EMIT and len(content) < MERGE_UP_TO // 2:
                self._tail = _Growing(self.next_seq, kind, bytearray(content))
            else:
                self._unread.append(Record(self.next_seq, kind, content))
            self._unread_records += 1
        self.next_seq += len(content)

    def seal(self) -> int:
        """Let the last record grow no more, and give the number of the next one: a place to stop reading at."""
        tail = self._tail
        if tail is not None:
            self._unread.append(Record(tail.seq, tail.kind, bytes(tail.content)))
            self._tail = None
        return self.next_seq

    def take(self, most: int, before: int | None = None) -> Piece:
        """Read on from where the last reader stopped.

        :param most: how many bytes at the most; an EMIT record that is larger comes alone.
        :param before: stop at this number, which :meth:`seal` gave.
        """
        self.seal()
        first = self.cursor
        taken: list[Record] = []
        room = most
        while self._unread and room > 0 and (before is None or self._unread[0].seq < before):
            record = self._unread[0]
            if len(record.content) <= room or (record.kind == EMIT and not taken):
                self._unread.popleft()
                self._unread_records -= 1
                room -= len(record.content)
            elif taken and (record.kind == EMIT or room < LONGEST_CHARACTER):
                break
            else:
                record = self._split(record, room)
                room = 0
            taken.append(record)
            self.cursor += len(record.content)
            self._remember(record)
        self.last_taken = self.cursor - first
        return Piece(first, self.cursor, tuple(taken))

    def acknowledge(self, seq: int) -> None:
        """Let what lies before a number count as read."""
        if seq > self.cursor:
            self.take(seq - self.cursor)

    def give_back(self, seq: int) -> None:
        """Let what :meth:`take` gave from a number on be unread again, as far as it is still kept; a place where it began."""
        self.seal()
        while self._read and self._read[-1].seq >= seq:
            record = self._read.pop()
            self._read_cost -= len(record.content) + RECORD_COST
            self._unread.appendleft(record)
            self._unread_records += 1
            self.cursor = record.seq

    def _split(self, record: Record, room: int) -> Record:
        """Cut the first unread record; its rest stays first."""
        position = _cut(record.content, room)
        self._unread[0] = Record(record.seq + position, record.kind, record.content[position:])
        return Record(record.seq, record.kind, record.content[:position])

    def _remember(self, record: Record) -> None:
        self._read.append(record)
        self._read_cost += len(record.content) + RECORD_COST
        while self._read_cost > self._keep and self._read:
            self._read_cost -= len(self._read.popleft().content) + RECORD_COST

    def read_from(self, seq: int, most: int) -> Piece:
        """Read again from a number, without moving the place where :meth:`take` goes on.

        A piece whose start is not kept any more begins later and says in ``missing`` how many bytes that cost.
        """
        self.seal()
        seq = min(max(seq, 0), self.next_seq)
        oldest = self._read[0].seq if self._read else self.cursor
        first = max(seq, oldest)
        found: list[Record] = []
        room = most
        for record in self._all():
            end = record.seq + len(record.content)
            if end <= first:
                continue
            wanted = record
            if record.kind != EMIT and record.seq < first:
                wanted = Record(first, record.kind, record.content[first - record.seq :])
            fits = len(wanted.content) <= room
            if found and not fits and (wanted.kind == EMIT or room < LONGEST_CHARACTER):
                break
            if not fits and wanted.kind != EMIT:
                wanted = Record(wanted.seq, wanted.kind, wanted.content[: _cut(wanted.content, room)])
            found.append(wanted)
            room -= len(wanted.content)
            if not fits:
                break
        if found:
            first = found[0].seq
            after = found[-1].seq + len(found[-1].content)
        else:
            after = first
        return Piece(first, after, tuple(found), missing=max(oldest - seq, 0))

    def _all(self) -> Iterator[Record]:
        yield from self._read
        yield from self._unread

    def carry(self) -> Mapping[str, Any]:
        """Give everything as plain values; :meth:`carried` makes a log of them that goes on alike."""
        self.seal()
        rows = [[[one.seq, one.kind, one.content] for one in records] for records in (self._read, self._unread)]
        return {"keep": self._keep, "read": rows[0], "unread": rows[1], "cursor": self.cursor, "next": self.next_seq}

    @classmethod
    def carried(cls, state: Mapping[str, Any]) -> OutputLog:
        """Make a log of what :meth:`carry` gave."""
        log = cls(state["keep"])
        log._read.extend(Record(*row) for row in state["read"])
        log._read_cost = sum(len(one.content) + RECORD_COST for one in log._read)
        log._unread.extend(Record(*row) for row in state["unread"])
        log._unread_records = len(log._unread)
        log.cursor, log.next_seq = state["cursor"], state["next"]
        return log

    def move_unread_to(self, other: OutputLog) -> None:
        """Append everything unread to another log and forget it here: what was printed in the background goes first."""
        self.seal()
        for record in self._unread:
            other.append(record.kind, record.content)
        self._unread.clear()
        self._unread_records = 0
        self.cursor = self.next_seq


class CreditWindow:
    """How many bytes of output the other side may send without being asked again.

    Credit that is above zero lets one frame of any size go, so that no frame is too large to be sent.

    :param size: most bytes in flight, that one frame apart.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.outstanding = 0

    def spend(self, amount: int) -> bool:
        """Note that output arrived; False when the other side had no credit left at all."""
        allowed = self.outstanding > 0
        self.outstanding -= amount
        return allowed

    def grant(self, room: int) -> int:
        """Tell how much credit to send now that the log has room for ``room`` bytes; 0 when it is not worth a frame."""
        due = min(self.size, room) - self.outstanding
        if due < self.size // 4:
            return 0
        self.outstanding += due
        return due

    def extend(self, amount: int) -> int:
        """Grant so much that ``amount`` may be sent, whatever room there is: for the last words of a run that is ended."""
        due = max(amount - self.outstanding, 0)
        self.outstanding += due
        return due


class Tail:
    """The last bytes of everything a kernel printed, for its log."""

    def __init__(self, keep: int = 256 * KIB) -> None:
        self._keep = keep
        # Large pieces are shared with whoever else keeps them; small ones are put together, because each costs something.
        self._pieces: deque[bytes | bytearray] = deque()
        self._size = 0
        self._cut = False

    def append(self, content: bytes) -> None:
        """Add output."""
        last = self._pieces[-1] if self._pieces else b""
        if isinstance(last, bytearray) and len(last) + len(content) <= TAIL_PIECE:
            last += content
        else:
            self._pieces.append(content if len(content) > TAIL_PIECE // 2 else bytearray(content))
        self._size += len(content)
        while self._size - len(self._pieces[0]) >= self._keep:
            self._size -= len(self._pieces.popleft())
            self._cut = True

    def carry(self) -> bytes:
        """Give the bytes, to be appended to another."""
        return b"".join(self._pieces)

    def text(self) -> str:
        """Give it as text, starting with a whole line where there is one."""
        content = self.carry()
        if self._cut or len(content) > self._keep:
            content = content[-self._keep :]
            content = content[content.find(b"\n") + 1 :]
        return content.decode("utf-8", "replace")
