"""Terminals as published clients open them."""

from __future__ import annotations

import textwrap

from tests.interop.environments import BACKEND_1_1_11, BACKEND_1_4_2, SORNA_0_9_8
from tests.interop.setting import InteropTestCase

# What the web terminals over these libraries do: resize, type, and read frames until they have seen enough.
TALK = """
import asyncio, base64, json

async def talk(kernel):
    stream = await kernel.stream_pty()
    await stream.resize(31, 91)
    typed = base64.b64encode(b"stty size; echo $((6*7))!\\r").decode("ascii")
    await stream.send_str(json.dumps({"type": "stdin", "chars": typed}))
    screen = b""
    async for message in stream:
        frame = json.loads(message.data)
        assert frame["type"] == "out", frame
        screen += base64.b64decode(frame["data"])
        if b"42!" in screen:
            break
    await stream.close()
    print("31 91" in screen.decode(), stream.closed)
"""


class OldTerminalTests(InteropTestCase):
    """Release 1.1.11, which signs the handshake."""

    client = BACKEND_1_1_11
    whole = """
    async def main():
        from ai.backend.client.asyncio.kernel import AsyncKernel
        kernel = await AsyncKernel.get_or_create("python3")
        await talk(kernel)
        await kernel.destroy()
    """

    def test_terminal(self) -> None:
        """A terminal is opened, resized, typed into and closed."""
        program = TALK + textwrap.dedent(self.whole) + "asyncio.get_event_loop().run_until_complete(main())\n"
        self.assertEqual(self.library(program), ["True True"])


class TerminalTests(OldTerminalTests):
    """Release 1.4.2."""

    client = BACKEND_1_4_2
    whole = """
    async def main():
        from ai.backend.client.session import AsyncSession
        async with AsyncSession() as session:
            kernel = await session.Kernel.get_or_create("python3")
            await talk(kernel)
            await kernel.destroy()
    """


class UnsignedTerminalTests(InteropTestCase):
    """sorna-client 0.9.8, which does not sign the handshake."""

    client = SORNA_0_9_8

    def test_refused(self) -> None:
        """It is refused, as every stranger is, and the session is none the worse for it."""
        program = """
        import asyncio
        from sorna.asyncio.kernel import AsyncKernel
        async def main():
            kernel = await AsyncKernel.get_or_create("python3")
            try:
                await kernel.stream_pty()
            except BaseException as error:  # the client's own are no Exception
                print(error)
            print((await kernel.get_info())["lang"])
            await kernel.destroy()
        asyncio.get_event_loop().run_until_complete(main())
        """
        refused, info = self.library(textwrap.dedent(program))
        self.assertIn("401", refused)
        self.assertEqual(info, "python3")
