"""`lectern ask` and `lectern chat`."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agents.commands import ask
from framework.config import Settings
from framework.documents import Document
from framework.errors import CallerError
from framework.models.base import Embedder
from framework.models.chat import PROVIDERS
from framework.testing.scripted import scripted_from_file

TEXT = "Refunds are paid within five days. A refund needs the receipt.\n"
LECTERN = Path(__file__).with_name("scripted_lectern.py")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script for the model `-m scripted:FILE`, empty at first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PROVIDERS._own, "scripted", scripted_from_file)
    path = tmp_path / "script.jsonl"
    path.write_text("")
    return path


@pytest.fixture
def shop(settings: Settings, embedder: Embedder) -> str:
    """An indexed collection."""
    from indexers.library import Library

    with Library.open(settings) as library:
        library.index_documents([Document("refunds.md", TEXT, title="Refunds", source="shop/refunds.md")], "shop")
    return "shop"


def run_ask(*arguments: str) -> Result:
    return CliRunner().invoke(ask, arguments, standalone_mode=False)


def test_ask_shows_steps_answer_and_sources(script: Path, shop: str) -> None:
    result = run_ask("Within how many days are refunds paid?", "-c", shop)
    assert result.return_value == 0, result.output
    assert result.stderr.startswith("· search_docs")
    assert result.stdout.startswith("five days [1]\n")
    assert "[1] Refunds (refunds.md, characters 0–34)\n    “Refunds are paid within five days.”" in result.stdout


def test_ask_gives_one_json_object(script: Path, shop: str) -> None:
    result = run_ask("Within how many days are refunds paid?", "-c", shop, "--json")
    answer = json.loads(result.stdout)
    citation = answer["citations"][0]
    assert TEXT[citation["start"] : citation["end"]] == citation["quote"]
    assert (answer["stop"], answer["supported"], answer["question"][:6]) == ("answered", True, "Within")


def test_ask_tells_by_its_exit_status_that_it_declined(script: Path, shop: str) -> None:
    result = run_ask("Who won the football championship of the world?", "-c", shop, "--quiet")
    assert (result.return_value, result.stdout, result.stderr) == (1, "I found no passage that answers this.\n", "")


def test_ask_writes_with_a_model_and_tools(script: Path) -> None:
    script.write_text('[{"name": "calculator", "arguments": {"expression": "6*7"}}]\n"It is 42."\n')
    result = run_ask("6 * 7?", "-t", "calculator", "-m", f"scripted:{script}")
    assert result.stdout == "It is 42.\n"
    assert '· calculator "6*7" → 42' in result.stderr


def test_ask_without_anything_to_answer_from_says_what_to_do(script: Path) -> None:
    result = run_ask("Hello?")
    assert isinstance(result.exception, CallerError)
    assert "-c NAME" in str(result.exception)


def test_ask_takes_the_configured_collections(script: Path, shop: str, tmp_path: Path) -> None:
    (tmp_path / "lectern.toml").write_text('[agent]\ncollections = ["shop"]\n')
    assert run_ask("Within how many days are refunds paid?").stdout.startswith("five days [1]")


def test_ask_imports_no_model_library_where_none_is_needed(script: Path, shop: str) -> None:
    code = (
        "import sys\nfrom framework.cli import root\n"
        "root(['ask', 'Within how many days are refunds paid?', '-c', 'shop', '-q'], standalone_mode=False)\n"
        "print([name for name in ('transformers', 'sentence_transformers', 'fastapi') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# Takes the pseudo-terminal as its own, so that Ctrl-C reaches it; a background job ignores SIGINT and hands that down.
IN_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """`lectern chat` in a pseudo-terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._fd, theirs = pty.openpty()
        command = [sys.executable, "-c", IN_TERMINAL, sys.executable, str(LECTERN), "chat", *arguments]
        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(theirs)
        self.pid = self._process.pid
        self.seen = ""

    def expect(self, pattern: str) -> str:
        """Read until the pattern has come; what came up to its end, which is then forgotten."""
        while not (match := re.search(pattern, self.seen)):
            try:
                data = os.read(self._fd, 4096)
            except OSError as error:
                raise AssertionError(f"{pattern!r} did not come; the program ended after: {self.seen!r}") from error
            self.seen += data.decode(errors="replace").replace("\r\n", "\n")
        found, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return found

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, again if nothing comes: what arrives just before readline waits is seen with the next key only."""
        self.type("\x03")
        while not select.select([self._fd], [], [], 2.0)[0]:
            self.type("\x03")

    def status(self) -> int:
        return self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)


@pytest.fixture
def terminal(script: Path) -> Iterator[Terminal]:
    lines = ["Hello, Ada.", "HANG on for ever", "I am back.", "Something new."]
    script.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    window = Terminal("-m", f"scripted:{script}", "--thread", "t")
    previous = signal.signal(signal.SIGALRM, lambda *_: os.kill(window.pid, signal.SIGKILL))
    signal.alarm(60)
    yield window
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)
    window.close()


def test_chat_answers_remembers_and_survives_ctrl_c(terminal: Terminal, tmp_path: Path) -> None:
    terminal.expect("> ")
    terminal.type("I am Ada.\n")
    assert "Hello, Ada." in terminal.expect("Ada.\n\n> ")
    terminal.type("Wait!\n")
    terminal.expect("HANG")
    terminal.type("\x03")
    terminal.expect("Stopped.\n> ")
    terminal.type("half a line")
    terminal.expect("half a line")
    terminal.interrupt()
    terminal.expect("> ")
    terminal.type("Are you there?\n")
    terminal.expect("I am back.\n\n> ")
    terminal.type("/sources\n")
    terminal.expect("no sources.\n> ")
    terminal.type("/nonsense\n")
    terminal.expect("There is no /nonsense")
    terminal.type("/new\n")
    terminal.expect("A new conversation.\n> ")
    terminal.type("Hello?\n")
    terminal.expect("Something new.\n\n> ")
    terminal.type("\x04")
    terminal.expect(r"Continue with: lectern chat --thread chat-\w+")
    assert terminal.status() == 0
    assert "Are you there?" in (tmp_path / "home" / "chat_history").read_text()


def test_chat_shows_help_and_ends_with_quit(terminal: Terminal) -> None:
    terminal.expect("> ")
    terminal.type("/help\n")
    terminal.expect("/quit or Ctrl-D ends")
    terminal.type("/quit\n")
    terminal.expect("Continue with")
    assert terminal.status() == 0


def test_chat_reads_a_pipe_and_goes_on_after_an_error(script: Path) -> None:
    command = [sys.executable, str(LECTERN), "chat", "-c", "nowhere", "-m", f"scripted:{script}"]
    done = subprocess.run(command, input="Hello?\nStill there?\n", capture_output=True, text=True, check=True)
    assert done.stderr.count("Error: There is no collection 'nowhere'.") == 2


def test_chat_names_the_command_that_goes_on_with_the_same_agent(script: Path) -> None:
    command = ["chat", "--thread", "my talk", "-c", "one", "-c", "two", "--mode", "write", "-m", f"scripted:{script}"]
    done = subprocess.run(
        [sys.executable, str(LECTERN), *command], input="", capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"Continue with: lectern {shlex.join(command)}"
