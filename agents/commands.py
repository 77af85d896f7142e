"""`lectern ask` and `lectern chat`."""

from __future__ import annotations

import json
import shlex
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from agents.agent import Agent
from agents.config import AgentConfig
from agents.events import Answer
from agents.terminal import notes, show, sources
from framework.config import Settings
from framework.errors import CallerError, LecternError

F = TypeVar("F", bound=Callable[..., Any])
HELP = (
    "/new starts a new conversation, /sources shows the last answer's sources, /help shows this, /quit or Ctrl-D ends. "
    "Ctrl-C stops an answer."
)
HISTORY_LINES = 1000


def agent_options(command: F) -> F:
    """The options that choose an agent, shared by both commands."""
    for option in (
        click.option("-m", "--model", help="Chat model; default: the configured one."),
        click.option(
            "--mode",
            type=click.Choice(["auto", "read", "quote", "write"]),
            help="Read the passages, quote them, or let the model write; auto reads where the model has learned it.",
        ),
        click.option("-t", "--tool", "tools", multiple=True, metavar="NAME", help="An installed tool; repeatable."),
        click.option("-c", "--collection", "collections", multiple=True, metavar="NAME", help="Repeatable."),
    ):
        command = option(command)
    return command


def _agent(
    settings: Settings, collections: tuple[str, ...], tools: tuple[str, ...], mode: Any, model: str | None
) -> Agent:
    """The configured agent, with what the options say instead; a model that does not exist is refused here."""
    from framework.models.chat import check_chat
    from framework.models.config import ModelsConfig

    if model is not None:
        check_chat(model, settings.section("models", ModelsConfig), settings=settings)
    config = settings.section("agent", AgentConfig)
    chosen = {"collections": collections, "tools": tools, "mode": mode, "model": model}
    return Agent.from_config(replace(config, **{key: value for key, value in chosen.items() if value}), settings)


@click.command()
@click.argument("question")
@agent_options
@click.option("--thread", help="Conversation to continue; it is stored under this name.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Print the answer only, without steps and sources.")
def ask(
    question: str,
    collections: tuple[str, ...],
    tools: tuple[str, ...],
    mode: str | None,
    model: str | None,
    thread: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Ask one question and print the cited answer.

    Exit status: 0 answered, 1 declined or stopped by a limit.
    """
    with _agent(Settings.load(), collections, tools, mode, model) as agent:
        if not agent.knowledge and not agent.tools:
            raise CallerError(
                "There is nothing to answer from.",
                hint="Name a collection: lectern ask QUESTION -c NAME (lectern collections list shows them).",
                field="collection",
            )
        if as_json:
            answer = agent.run(question, thread_id=thread)
            click.echo(json.dumps({"question": question, **asdict(answer)}, ensure_ascii=False, indent=2))
        else:
            answer = show(agent.stream(question, thread_id=thread), quiet=quiet)
            if not quiet:
                _epilogue(answer)
    return 0 if answer.stop == "answered" else 1


def _epilogue(answer: Answer) -> None:
    """What stands below an answer."""
    for text in (sources(answer.citations), notes(answer.notices)):
        if text:
            click.echo(f"\n{text}")


@click.command()
@agent_options
@click.option("--thread", help="Conversation to continue; default: a new one.")
def chat(
    collections: tuple[str, ...], tools: tuple[str, ...], mode: str | None, model: str | None, thread: str | None
) -> None:
    """Talk with an agent in the terminal."""
    settings = Settings.load()
    with _agent(settings, collections, tools, mode, model) as agent, _remembered_input(settings.home):
        thread = thread or _new_thread()
        click.echo(f"{HELP}\n")
        last: Answer | None = None
        while (line := _read()) is not None:
            match line.strip():
                case "":
                    continue
                case "/quit" | "/exit":
                    break
                case "/help":
                    click.echo(HELP)
                case "/sources":
                    click.echo(
                        sources(last.citations) if last and last.citations else "The last answer has no sources."
                    )
                case "/new":
                    thread, last = _new_thread(), None
                    click.echo("A new conversation.")
                case command if command.startswith("/"):
                    click.echo(f"There is no {command.split()[0]}. {HELP}")
                case question:
                    last = _answer(agent, question, thread) or last
        click.echo(f"Continue with: {_again(thread, collections, tools, mode, model)}")


def _again(
    thread: str, collections: tuple[str, ...], tools: tuple[str, ...], mode: str | None, model: str | None
) -> str:
    """The command that goes on with a thread, with the same agent: a thread remembers turns, not options."""
    words = ["lectern", "chat", "--thread", thread]
    for option, values in (("-c", collections), ("-t", tools), ("--mode", (mode,)), ("-m", (model,))):
        words += [word for value in values if value for word in (option, value)]
    return shlex.join(words)


def _answer(agent: Agent, question: str, thread: str) -> Answer | None:
    """One turn. Ctrl-C ends it, an error is told, and the conversation goes on after both."""
    try:
        answer = show(agent.stream(question, thread_id=thread))
    except KeyboardInterrupt:
        click.echo("\nStopped.", err=True)
        return None
    except LecternError as error:
        click.echo(f"Error: {error}", err=True)
        return None
    _epilogue(answer)
    click.echo()
    return answer


def _read() -> str | None:
    """The next line; None at the end of the input. Ctrl-C clears the line."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except KeyboardInterrupt:
            click.echo()
        except EOFError:
            click.echo()
            return None


def _new_thread() -> str:
    return f"chat-{uuid.uuid4().hex[:12]}"


@contextmanager
def _remembered_input(home: Path) -> Iterator[None]:
    """Lines typed before can be recalled with the arrow keys, also those of earlier sessions."""
    if not sys.stdin.isatty():
        yield
        return
    import readline

    path = home / "chat_history"
    if path.is_file():
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        home.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.write_history_file(path)
