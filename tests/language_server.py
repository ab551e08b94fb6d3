"""A client of pyright's language server: what an editor that uses it shows at a place of a program."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self


class LanguageServer:
    """The server, with one open program."""

    def __init__(self, where: Path) -> None:
        self._program = (where / "program.py").as_uri()
        self._settings = {"python": {"pythonPath": sys.executable}}
        self._last = 0
        command = [str(Path(sys.executable).parent / "basedpyright-langserver"), "--stdio"]
        self._server = subprocess.Popen(command, cwd=where, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        root = {"uri": where.as_uri(), "name": "program"}
        can = {
            "textDocument": {"hover": {"contentFormat": ["plaintext"]}},
            "workspace": {"configuration": True},
        }
        self._ask(
            "initialize", processId=None, rootUri=root["uri"], workspaceFolders=[root], capabilities=can
        )
        self._tell("initialized")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.communicate()

    def open(self, text: str) -> None:
        """Opens the program, which ends where the editor's cursor is."""
        self._lines = text.split("\n")
        document = {"uri": self._program, "languageId": "python", "version": 1, "text": text}
        self._tell("textDocument/didOpen", textDocument=document)

    def close(self) -> None:
        self._tell("textDocument/didClose", textDocument={"uri": self._program})

    def completions(self) -> dict[str, Callable[[], str]]:
        """The names that are offered at the end of the program, and how each is explained."""
        answer = self._ask("textDocument/completion", **self._at_end())
        return {it["label"]: partial(self._explained, it) for it in answer["items"]}

    def hover(self) -> str:
        """What is shown for the name at the end of the program."""
        answer = self._ask("textDocument/hover", **self._at_end())
        return str(answer["contents"]["value"])

    def _explained(self, item: dict[str, Any]) -> str:
        documentation = self._ask("completionItem/resolve", **item).get("documentation", "")
        return str(documentation["value"] if isinstance(documentation, dict) else documentation)

    def _at_end(self) -> dict[str, Any]:
        position = {"line": len(self._lines) - 1, "character": len(self._lines[-1])}
        return {"textDocument": {"uri": self._program}, "position": position}

    def _ask(self, method: str, **params: Any) -> Any:
        self._last += 1
        self._send({"id": self._last, "method": method, "params": params})
        while True:
            message = self._receive()
            if message.get("id") == self._last and "method" not in message:
                assert "error" not in message, message
                return message["result"]
            if (
                "method" in message and "id" in message
            ):  # the server asks for settings, or to register something
                items = message["params"].get("items", ())
                self._send(
                    {"id": message["id"], "result": [self._settings.get(it["section"], {}) for it in items]}
                )

    def _tell(self, method: str, **params: Any) -> None:
        self._send({"method": method, "params": params})

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self._server.stdin
        self._server.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self._server.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._server.stdout
        length = 0
        while line := self._server.stdout.readline().strip():
            name, _, value = line.partition(b": ")
            length = int(value) if name == b"Content-Length" else length
        assert length, "the server has ended"
        message: dict[str, Any] = json.loads(self._server.stdout.read(length))
        return message
