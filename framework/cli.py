"""The root command. It lists the folders' commands by entry point and imports only the one that is run.

`lectern --help` shows each command's first line from `SUMMARIES`, so that help needs no import; a plugin's command,
which is not in that table, is imported for its own summary.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

import click

from framework.errors import LecternError, OperatorError
from framework.registry import Registry
from framework.terminal import plain

SUMMARIES = {
    "adapters": "Add, check, list and switch LoRA and (IA)³ adapters.",
    "ask": "Ask one question and print the cited answer.",
    "chat": "Talk with an agent in the terminal.",
    "collections": "List, inspect and remove collections and documents.",
    "dataset": "Check, clean, split, make and judge data to train on.",
    "doctor": "Tell what is installed, found, reachable and shadowed.",
    "eval": "Measure retrieval and answers, with gates for CI.",
    "feedback": "Judge answers, and list what was judged.",
    "index": "Index files, or look at an index: status, verify.",
    "models": "List, show, fetch and quantize models.",
    "search": "Search a collection.",
    "serve": "Serve the OpenAI-compatible HTTP API.",
    "train": "Train an adapter from one file.",
}


class Root(click.Group):
    """A group whose commands are entry points of `lectern.commands`."""

    commands_registry: Registry[click.Command] = Registry("command", "lectern.commands")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return self.commands_registry.names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self.commands_registry.get(cmd_name) if cmd_name in self.commands_registry else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, SUMMARIES.get(name) or self._imported_summary(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _imported_summary(self, ctx: click.Context, name: str) -> str:
        try:
            command = self.get_command(ctx, name)
        except OperatorError as error:
            return f"(broken plugin) {error.message}"
        return command.get_short_help_str(80) if command else ""


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("lectern"), prog_name="lectern")
def root() -> None:
    """From a folder of documents to a served, measured agent that answers from them and cites them."""


def main() -> None:
    """Run the command line. A LecternError becomes one message and an exit status, any other error a traceback.

    Exit status: 0 success, 1 a failed gate or quarantined documents, 2 a wrong call, 3 something the operator has to
    mend, 130 interrupted.
    """
    try:
        status = root.main(standalone_mode=False)
    except LecternError as error:
        click.echo(f"Error: {plain(str(error))}", err=True)
        sys.exit(3 if isinstance(error, OperatorError) else 2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
