"""The built wheel, installed outside the checkout, runs an agent: nothing that it needs is left in the sources."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
AGENT = """
import json
from pathlib import Path

import framework
from agents import Agent
from indexers.library import Library
from tools import tool

Path("handbook").mkdir()
Path("handbook/leave.md").write_text("# Leave\\n\\nEvery employee has 27 days of paid leave a year.\\n")
with Library.open() as library:
    library.index([Path("handbook")], "handbook")


@tool
def today() -> str:
    "Today's date."
    return "2026-01-02"


with Agent("helper", knowledge=["handbook"], tools=[today]) as agent:
    answer = agent.run("How many days of paid leave does every employee have?")
print(json.dumps({"from": framework.__file__, "text": answer.text, "quotes": [c.quote for c in answer.citations]}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git tracks, so that a stale build folder can't hide a missing file."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    subprocess.run(command, cwd=source, check=True, timeout=120)
    return next((source / "dist").glob("lectern-*.whl"))


def test_the_wheel_holds_the_packages_and_their_files_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"framework", "tools", "agents", "indexers", "server", "evals"}
    for expected in ("framework/py.typed", "agents/prompts/", "evals/suites/"):
        assert any(name.startswith(expected) for name in names), f"{expected} is not in the wheel"


def test_the_wheel_holds_what_ships_beside_the_models(wheel: Path) -> None:
    shipped = ROOT / "framework/models/shipped"
    files = {str(path.relative_to(ROOT)) for path in shipped.rglob("*") if path.is_file()}
    assert files <= set(zipfile.ZipFile(wheel).namelist())


def test_an_agent_runs_from_the_wheel_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    # The dependencies come from this environment; a path file's entries don't have their own path files read, so the
    # editable installation of the checkout stays out.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(own)
    work = tmp_path / "work"
    work.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LECTERN_LECTERN", "PYTHON"))}
    done = subprocess.run(
        [tmp_path / "venv/bin/python", "-c", AGENT],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert Path(result["from"]).is_relative_to(own)
    assert "27 days" in result["text"]
    assert result["quotes"]
