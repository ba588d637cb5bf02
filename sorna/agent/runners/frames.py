"""The frames between an agent and the first process of a kernel (``init``), and their codec.

Standard library only, because it is loaded on both sides of the wall. A frame is a 4-byte big-endian payload length, one
byte of kind, and the payload. Neither side trusts the other's lengths: more than :data:`MAX_PAYLOAD` is a protocol error.

Agent to init (JSON objects in UTF-8 unless said otherwise):

=============  ==========================================================================================
CONFIGURE      first frame: ``{"runtime": {...row of the language table...}, "environ": {name: value},
               "credit": bytes}``; answered by READY
RUN            ``{"run", "mode": "query"|"batch", "code", "clean": str|null, "build": str|null, "exec": str|null,
               "build_log": bool, "unattended": bool}``; one run at a time: the agent queues. An unattended run finds the
               end of its input where it reads, and its uncaught exception is recorded and not printed. What is null or
               false may be left out
INPUT          ``{"run", "text"}``: one line as typed, the newline is added by init; may come before it is asked for
INTERRUPT      ``{}``: SIGINT to what runs now
COMPLETE       ``{"request", "code", "row", "col", "line", "post"}``; answered by REPLY
UPLOAD         JSON header ``{"request", "path", "append": bool}``, a NUL byte, then the raw content; answered by REPLY
LIST           ``{"request", "path", "recursive": bool}``; answered by REPLY with a list of ``[name, mode, size, modified,
               changed, used]``, times in seconds
READ           ``{"request", "path", "offset", "size"}``; answered by CONTENT, or by REPLY when it is refused
RESTART        ``{"request"}``: kill everything but init, fresh state, same files; answered by REPLY
KILL_RUN       ``{"run", "message"}``: end this run at once: kill its processes, print the message to stderr, answer
               FINISHED with ``"reset": true``
ASSIGN         ``{"environ": {name: value}}``: whose kernel this is has been decided; the variables are added to those of
               CONFIGURE before anything of the user's runs
CREDIT         4 bytes, big-endian: so many more payload bytes of STDOUT, STDERR and EMIT may be sent
LANE           ``{"lane": number}`` and, with its bytes, the REPL's end of a lane; see below
UNDER_WAY      ``{"run", "lane", "unattended", "since"}``: this run was given to the REPL over that lane at ``since``
               (seconds of the epoch), and what follows is about it
OVER           JSON header, a NUL byte, last words: a run of a lane has ended as the header says, which is that of ENDED with
               ``since`` and, where the REPL itself has ended, ``signal``; answered by FINISHED, if it was not before
=============  ==========================================================================================

About the terminal, agent to init; between CLOSED and the next OPEN all but OPEN and CREDIT do nothing:

================  =======================================================================================
TERMINAL_OPEN     ``{"rows", "columns"}``: start a shell on a pseudo-terminal; where there is one, resize it
TERMINAL_INPUT    raw bytes, as typed
TERMINAL_RESIZE   ``{"rows", "columns"}``
TERMINAL_STOP     ``{}``: end the shell; answered by TERMINAL_CLOSED
TERMINAL_CREDIT   4 bytes, big-endian: so many more bytes of TERMINAL_OUTPUT may be sent, of this shell or later ones
================  =======================================================================================

About connections to applications, agent to init. ``number`` is 4 bytes, big-endian, that the agent gave to a connection;
about one that is closed nothing has an effect:

================  =======================================================================================
SERVICE_OPEN      ``{"connection": number, "port", "credit": bytes, "start": null|{"name", "script", "arguments": [text],
                  "environ": {name: value}, "patience": seconds}}``: connect to the port on the loopback; with ``start``,
                  run the script first unless the application of that name runs, and wait until it listens
SERVICE_INPUT     number, raw bytes: at most ``SERVICE_WINDOW`` beyond what SERVICE_ROOM gave back
SERVICE_CREDIT    number, 4 bytes, big-endian: so many more bytes of SERVICE_OUTPUT may be sent
SERVICE_FINISH    number: the application reads the end behind what was sent
SERVICE_CLOSE     number: write what was sent, if the application reads on, and close; answered by SERVICE_CLOSED
SERVICE_STOP      ``{"request", "name"}``: end the application of that name; answered by REPLY once it is gone
SERVICE_LIST      ``{"request"}``: answered by REPLY with the ports that something in the kernel listens on now
================  =======================================================================================

Init to agent:

=============  ==========================================================================================
READY          ``{"pid"}``: code can run now
STDOUT STDERR  raw bytes of the current run, or of what runs on in the background between two runs
EMIT           JSON array ``["media", [mime, data]]``, ``["html", text]`` or ``["log", [level, time, logger, text]]``
WAITING_INPUT  ``{"run", "is_password": bool, "inputs": int}``: ``inputs`` counts the INPUT frames of the run that had
               arrived; one that the agent has sent since answers this
BUILD_FINISHED ``{"run", "exit_code"}``: the build step of a batch is over and exec follows
FINISHED       ``{"run", "exit_code": int|null, "exceptions": [{"name", "args", "before_exec", "traceback"}],
               "files": [relative paths], "reset": bool}``; all output of the run was sent before. ``reset`` tells that
               the in-memory state was lost; ``signal`` (int) is there when a signal ended the process
CONTENT        JSON header ``{"request", "size": of the whole file}``, a NUL byte, then a piece of its content
REPLY          ``{"request", "error": null|{"kind": "refused"|"failed", "detail"}, "result"}``
RESTARTED      ``{"reason", "exit_code", "signal": int|null}``: the runner died while init knew of no run, and was started
               again; all that it printed was sent before
=============  ==========================================================================================

About the terminal, init to agent:

================  =======================================================================================
TERMINAL_OUTPUT   raw bytes of the pseudo-terminal
TERMINAL_CLOSED   ``{"error": str|null, "stopped": bool}``: there is no shell any more, or it could not be started; all
                  its output was sent before, unless it was stopped by TERMINAL_STOP or RESTART
================  =======================================================================================

About connections to applications, init to agent:

================  =======================================================================================
SERVICE_OUTPUT    number, raw bytes of the application
SERVICE_ROOM      number, 4 bytes, big-endian: so many bytes were written to the application
SERVICE_FINISHED  number: the application sends no more
SERVICE_CLOSED    JSON ``{"connection": number, "error": str|null}``: the last word about a connection, once for each
                  SERVICE_OPEN; everything the application sent came before, as far as there was credit
================  =======================================================================================

Only STDOUT, STDERR and EMIT cost credit: everything else passes at once, so a reader that stops reading output stops
the program that prints (init stops reading its pipes) and never the control of it. The terminal and each
connection to an application have credit of their own.

A lane is a socket pair between the agent and the REPL, past init, for runs of which init need not know: no process but the
REPL is woken for them. What the REPL says there is a user's word, as what it says to init is. The agent makes one for each REPL
that it hears of, init hands it on, and either side may close it at any time: the REPL then tells init what it would have told the
agent. Agent to REPL, with the kinds of ``repl_link.py``:

=============  ==========================================================================================
ENVIRON        as ASSIGN, of which init is told too, with ``"lane": number``, so that it need not hand it on
EXECUTE        the run's id, a NUL byte, code in UTF-8; EXECUTE_UNATTENDED likewise
=============  ==========================================================================================

REPL to agent:

=============  ==========================================================================================
WARM           empty: the lane is in use
ENDED          JSON header like FINISHED, a NUL byte, and at most ``MOST_LAST_WORDS`` of stdout. It is only sent where nothing
               of the run went through init: no output, no figure, no question. Otherwise the REPL tells init of the end,
               which drains the pipes and sends FINISHED
=============  ==========================================================================================

Before the agent sends init anything about a run of a lane (INPUT, INTERRUPT, KILL_RUN, RESTART, COMPLETE) it sends UNDER_WAY;
from then on the run is init's as any other, and an ENDED goes back to init as OVER. Messages about a run that is over cross each
other without harm: a run's id is a decimal number, larger than those of all runs before, and both sides leave alone what speaks of
another run than the current one.
"""

import struct

MAX_PAYLOAD = 16 * 1024 * 1024
# Most bytes on their way to an application over one connection.
SERVICE_WINDOW = 256 * 1024
HEADER = struct.Struct(">IB")

CONFIGURE = 1
RUN = 2
INPUT = 3
INTERRUPT = 4
COMPLETE = 5
UPLOAD = 6
RESTART = 7
KILL_RUN = 8
CREDIT = 9
ASSIGN = 10
LANE = 16
UNDER_WAY = 17
OVER = 18
TERMINAL_OPEN = 11
TERMINAL_INPUT = 12
TERMINAL_RESIZE = 13
TERMINAL_STOP = 14
TERMINAL_CREDIT = 15
SERVICE_OPEN = 30
SERVICE_INPUT = 31
SERVICE_CREDIT = 32
SERVICE_FINISH = 33
SERVICE_CLOSE = 34
SERVICE_STOP = 35
SERVICE_LIST = 36
LIST = 20
READ = 21

READY = 65
STDOUT = 66
STDERR = 67
EMIT = 68
WAITING_INPUT = 69
BUILD_FINISHED = 70
FINISHED = 71
REPLY = 72
RESTARTED = 73
TERMINAL_OUTPUT = 74
TERMINAL_CLOSED = 75
CONTENT = 84
SERVICE_OUTPUT = 90
SERVICE_ROOM = 91
SERVICE_FINISHED = 92
SERVICE_CLOSED = 93

OUTPUT_KINDS = frozenset({STDOUT, STDERR, EMIT})


class FrameError(Exception):
    """The peer sent bytes that are no frame of this protocol."""


def pack_frame(kind: int, payload: bytes) -> bytes:
    """Give the bytes of one frame."""
    return HEADER.pack(len(payload), kind) + payload


class FrameReader:
    """Cuts a byte stream into frames; keeps what is incomplete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def incomplete(self) -> bytes:
        """What was fed of a frame whose end is still to come."""
        return bytes(self._buffer)

    def feed(self, chunk: bytes | memoryview) -> list[tuple[int, bytes]]:
        """Take bytes as they arrive and give the frames that are complete now. The chunk is not kept.

        :raises FrameError: a frame announces more than ``MAX_PAYLOAD`` bytes.
        """
        frames: list[tuple[int, bytes]] = []
        view = memoryview(chunk)
        if self._buffer:
            view = self._complete_first(view, frames)
        position = 0
        available = len(view)
        while available - position >= HEADER.size:
            length, kind = self._header(view, position)
            end = position + HEADER.size + length
            if end > available:
                break
            frames.append((kind, bytes(view[position + HEADER.size : end])))
            position = end
        self._buffer += view[position:]
        return frames

    def _complete_first(self, view: memoryview, frames: list[tuple[int, bytes]]) -> memoryview:
        """Add to the frame whose beginning is kept what belongs to it, and give the rest."""
        buffer = self._buffer
        missing = max(HEADER.size - len(buffer), 0)
        buffer += view[:missing]
        if len(buffer) < HEADER.size:
            return view[missing:]
        length, kind = self._header(buffer, 0)
        end = missing + HEADER.size + length - len(buffer)
        buffer += view[missing:end]
        if len(buffer) == HEADER.size + length:
            frames.append((kind, bytes(memoryview(buffer)[HEADER.size :])))
            self._buffer = bytearray()
        return view[end:]

    @staticmethod
    def _header(content: bytearray | memoryview, position: int) -> tuple[int, int]:
        length, kind = HEADER.unpack_from(content, position)
        if length > MAX_PAYLOAD:
            message = f"a frame of {length} bytes"
            raise FrameError(message)
        return length, kind
