"""The JavaScript client of 2021 as published on npm, under node."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path
from unittest import SkipTest

from sorna.testing.server import shared_server
from sorna.testing.unit import UnitTestCase
from tests.interop.environments import ClientUnavailable, prepare_javascript
from tests.interop.setting import TIMEOUT

# The client is written for browsers and keeps the time of its last success in one's storage.
SCRIPT = """
global.localStorage = {getItem: () => null, setItem: () => {}};
const {Client, ClientConfig} = require("backend.ai-client/backend.ai-client-node.js");
const {KEY, SECRET, ENDPOINT, TOKEN} = process.env;
const client = new Client(new ClientConfig(KEY, SECRET, ENDPOINT), "interop");
(async () => {
  console.log((await client.getServerVersion()).version);
  const made = await client.createIfNotExists("python3", TOKEN, {cpu: 1, mem: "256m", env: {COLOUR: "red"}});
  const again = await client.createIfNotExists("python3", TOKEN);
  console.log(made.created, again.created, made.kernelId === again.kernelId);
  const code = "import os; print(os.environ['COLOUR'], input()); _ = open('a.txt', 'w').write('x')";
  const run = "js" + TOKEN.slice(-12);
  let answer = await client.execute(made.kernelId, run, "query", code, {});
  console.log(answer.result.status);
  answer = await client.execute(made.kernelId, run, "input", "typed", {});
  console.log(answer.result.status, answer.result.console[0][1].trim());
  console.log((await client.download(made.kernelId, ["a.txt"])).size > 1024);
  console.log((await client.get_logs(TOKEN)).result.logs.trim());
  console.log("cpu_used" in (await client.destroy(made.kernelId)).stats);
  await client.get_info(made.kernelId).catch(error => console.log(error.statusCode, error.title));
})().catch(error => { console.error(error); process.exit(1); });
"""


class JavaScriptClientTests(UnitTestCase):
    """Against a real server."""

    def test_a_session(self) -> None:
        """Version, create, reuse, a run with input, download, logs, destroy, and an error in the server's words."""
        try:
            folder = prepare_javascript()
        except ClientUnavailable as error:
            raise SkipTest(str(error)) from error
        server = shared_server()
        script = Path(self.mktemp())
        script.write_text(SCRIPT, "utf-8")
        done = subprocess.run(
            ["node", str(script.resolve())],
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "NODE_PATH": str(folder / "node_modules"),
                "KEY": server.access_key,
                "SECRET": server.secret_key,
                "ENDPOINT": server.endpoint,
                "TOKEN": f"interop-{secrets.token_hex(6)}",
            },
            capture_output=True,
            encoding="utf-8",
            timeout=TIMEOUT,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(
            done.stdout.splitlines(),
            [
                "v4.20181215",
                "true false true",
                "waiting-input",
                "finished red typed",
                "true",
                "red typed",
                "true",
                "404 404 Not Found - No such kernel. (terminated: user-requested)",
            ],
        )
