"""A plugin is installed for real, from its own distribution, and runs in a fresh process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parent.parent / "plugin"

LOAD = """
import asyncio, sys
from framework.errors import LecternError
from framework.messages import ToolCall
from tools import Executor, ToolContext, load_tools
try:
    tools = load_tools(sys.argv[2:])
except LecternError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(asyncio.run(Executor(tools).run(ToolCall("1", sys.argv[2], sys.argv[1]), ToolContext())).content)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both plugins installed, built without the network."""
    sources = tmp_path_factory.mktemp("sources")
    target = tmp_path_factory.mktemp("site")
    copies = [str(shutil.copytree(PLUGINS / name, sources / name)) for name in ("weather", "broken")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(target), *copies], check=True, timeout=120)
    return target


def load(site: Path, *names: str, arguments: str = "{}") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LOAD, arguments, *names]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(command, env=environment, cwd=site, capture_output=True, text=True, check=False, timeout=60)


def test_an_installed_plugin_shows_up_and_runs_beside_the_built_in_tools(site: Path) -> None:
    done = load(site, "forecast", "current_time", arguments='{"city": "Rome"}')
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '{"city":"Rome","unit":"celsius","high":21}'


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raises_on_import", "this module divides by zero"),
        ("exits_on_import", "no licence key"),
        ("absent", "No module named 'lectern_absent'"),
        ("not_a_tool", "gives something of type int"),
        ("calculator", "lectern_plain:calculator and tools.builtin.calculator:calculator"),
        ("nothing_of_that_name", "Known: absent, calculator, clashes, current_time"),
    ],
)
def test_a_broken_plugin_is_told_by_name_to_who_asks_for_it(site: Path, name: str, told: str) -> None:
    done = load(site, "forecast", name)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert name in done.stderr
    assert told in done.stderr


def test_two_plugins_whose_tools_share_a_name_cannot_be_combined(site: Path) -> None:
    done = load(site, "forecast", "clashes")
    assert "CallerError: Two tools are named 'forecast'" in done.stderr
