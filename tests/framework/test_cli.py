from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest

from framework import cli
from framework.errors import CallerError, LecternError, StoreLocked


def run_main(command: click.Command, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(cli, "root", command)
    monkeypatch.setattr(sys, "argv", ["lectern"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CallerError("Wrong.", hint="Do this."), 2),
        (StoreLocked("Locked."), 3),
        (click.UsageError("No such option."), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_becomes_one_message_and_its_exit_status(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    assert run_main(failing, monkeypatch) == status
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    if isinstance(error, LecternError):
        assert shown == f"Error: {error}\n"


def test_a_commands_own_status_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def gate() -> int:
        return 1

    assert run_main(gate, monkeypatch) == 1


def test_every_own_command_has_its_summary_in_the_table() -> None:
    own = {
        point.name for point in entry_points(group="lectern.commands") if point.dist and point.dist.name == "lectern"
    }
    assert own == set(cli.SUMMARIES)


def test_help_imports_no_command_and_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['lectern', '--help']\n"
        "from framework.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'langgraph', 'fastapi', 'qdrant_edge', 'numpy', 'pydantic', 'indexers'}\n"
        "print('imported:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "imported: []" in done.stdout
