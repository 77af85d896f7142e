"""A conversation as the one string that a model continues, by the model's own chat template.

Templates that we know by their hash are rendered here, in the process. Any other runs in a child process (see
template_worker) that is started when first needed, kept, and killed when it takes too long: a template may come to
nothing good only for some conversations, so looking at it once would not do. A call through the child takes less than a
millisecond, its start a sixth of a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from framework.errors import CallerError, ModelUnavailable

SECONDS = 5.0
LONGEST = 1 << 20  # characters of a template
TRUSTED = {"872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"}  # SmolLM2-135M-Instruct's, by SHA-256
WORKER = Path(__file__).with_name("template_worker.py")


class ChatTemplate:
    """One model's template.

    Args:
        source: the jinja2 text.
        name: the model's, for messages.
        tokens: `bos_token` and the like, which templates print.
        trusted: render in this process; by default decided by the source's hash.
        seconds: after this time the child is killed.
    """

    def __init__(
        self,
        source: str,
        name: str,
        tokens: Mapping[str, str] | None = None,
        *,
        trusted: bool | None = None,
        seconds: float = SECONDS,
    ) -> None:
        if len(source) > LONGEST:
            raise ModelUnavailable(f"The chat template of {name} has {len(source)} characters, the limit is {LONGEST}.")
        self.source = source
        self.name = name
        self.tokens = dict(tokens or {})
        self.trusted = digest(source) in TRUSTED if trusted is None else trusted
        self._child = _Child(seconds)

    @classmethod
    def of_folder(cls, folder: Path, name: str) -> ChatTemplate:
        """The template in a model's folder: `chat_template.jinja`, or in `tokenizer_config.json`.

        Raises:
            ModelUnavailable: there is none.
        """
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        source = config.get("chat_template")
        if isinstance(source, list):
            source = next((entry["template"] for entry in source if entry["name"] == "default"), None)
        if (folder / "chat_template.jinja").is_file():
            source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        if not isinstance(source, str):
            raise ModelUnavailable(
                f"The model {name} has no chat template.",
                hint="Use one that was tuned for chat (often named -Instruct).",
            )
        return cls(
            source, name, {key: _content(config[key]) for key in config if key.endswith("_token") and config[key]}
        )

    def render(self, turns: Sequence[Mapping[str, str]]) -> str:
        """The prompt, up to where the assistant's answer begins.

        Raises:
            CallerError: the template refuses this conversation (roles that must alternate, say).
            ModelUnavailable: the template is broken, reaches for what it may not, or does not end.
        """
        values = {**self.tokens, "messages": [dict(turn) for turn in turns], "add_generation_prompt": True}
        if self.trusted:
            from framework.prompts import template_worker

            answer = template_worker.render(self.source, values)
        else:
            answer = self._child.ask(self.source, values)
        if "text" in answer:
            return answer["text"]
        if "refused" in answer:
            raise CallerError(f"The chat template of {self.name} says: {answer['refused']}", field="messages")
        raise ModelUnavailable(
            f"The chat template of {self.name} failed: {answer['broken'][:500]}",
            hint="Mend chat_template.jinja in the model's folder, or use another model.",
        )

    def close(self) -> None:
        """End the child process, if there is one; the next `render` starts another."""
        self._child.stop()


class _Child:
    """The process that renders, with a thread that reads its answers so that waiting for one can end."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ask(self, template: str, values: Mapping[str, Any]) -> dict[str, str]:
        request = {"template": template, "values": values, "seconds": self.seconds}
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = self._answers.get(timeout=self.seconds)
            except queue.Empty:
                self._kill()
                return {"broken": f"it did not end within {self.seconds:g} seconds."}
            except BrokenPipeError:
                line = ""
            if not line:
                self._kill()
                return {"broken": "its process died, most likely of too much memory."}
            answer: dict[str, str] = json.loads(line)
            return answer

    def stop(self) -> None:
        with self._lock:
            self._kill()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            kept = {key: os.environ[key] for key in ("PATH", "SYSTEMROOT", "TZ") if key in os.environ}
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env={**kept, "PYTHONUTF8": "1"},
            )
            self._answers = queue.SimpleQueue()
            assert self._process.stdout is not None
            reader = threading.Thread(
                target=_forward, args=(self._process.stdout, self._answers), name="lectern-template", daemon=True
            )
            reader.start()
        return self._process

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None


def _forward(lines: IO[str], answers: queue.SimpleQueue[str]) -> None:
    """Pass on lines; an empty one tells that the process ended."""
    try:
        for line in lines:
            answers.put(line)
    except ValueError:  # the pipe was closed while we read
        pass
    answers.put("")


def digest(source: str) -> str:
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, Mapping) else token)
