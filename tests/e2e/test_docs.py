"""README and docs/ can't rot: their Python and shell blocks run, their TOML is read, their links and trees exist.

The blocks of one page run in order in one folder that holds a copy of docs/. A block after `<!-- not run: why -->` is
shown only. A page that speaks to the server gets one, on a free port instead of 8000.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from framework.config import Settings
from framework.training.config import read_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?P<skip><!-- not run: .+? -->\n+)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
SERVER = "127.0.0.1:8000"
LECTERN = str(Path(sys.executable).parent / "lectern")
NOT_STARTED = ("lectern serve", "lectern chat")


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(match["language"], match["code"], text.count("\n", 0, match.start("code")))
        for match in BLOCK.finditer(text)
        if not match["skip"]
    ]


def runnable(page: Path) -> bool:
    return any(block.language in ("python", "sh", "toml") for block in blocks(page))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([LECTERN, "serve", "--port", str(port)], cwd=folder)
    try:
        deadline = time.monotonic() + 60
        while not _ready(port):
            assert process.poll() is None, "lectern serve ended"
            assert time.monotonic() < deadline, "lectern serve did not get ready"
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
    except httpx.TransportError:
        return False


def run_shell(code: str, folder: Path) -> None:
    for line in code.replace("\\\n", " ").splitlines():
        command = line.removeprefix("$ ").split("  #")[0].strip()
        if command.startswith(("lectern ", "curl ")) and not command.startswith(NOT_STARTED):
            words = shlex.split(command)
            words[0] = LECTERN if words[0] == "lectern" else words[0]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def run_page(page: Path, folder: Path, address: str) -> None:
    names: dict[str, object] = {"__name__": "__page__"}
    for block in blocks(page):
        code = block.code.replace(SERVER, address)
        if block.language == "python":
            exec(compile("\n" * block.line + code, str(page), "exec"), names)
        elif block.language == "sh":
            run_shell(code, folder)
        elif block.language == "toml" and code.startswith("recipe"):
            (folder / "train.toml").write_text(code, encoding="utf-8")
            read_config(folder / "train.toml")
        elif block.language == "toml" and "[eval" not in code and "[dataset" not in code and "[project" not in code:
            assert_settings(code)


def assert_settings(code: str) -> None:
    from importlib.metadata import entry_points

    values = tomllib.loads(code)
    settings = Settings(values, Path.cwd())
    kinds = {point.name: point for point in entry_points(group="lectern.config")}
    for name in values:
        settings.section(name, kinds[name].load())


@pytest.mark.parametrize("page", [p for p in PAGES if p.is_file() and runnable(p)], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, folder: Path) -> None:
    subprocess.run([LECTERN, "index", "docs", "-c", "docs"], cwd=folder, check=True, timeout=300, capture_output=True)
    if SERVER in page.read_text(encoding="utf-8"):
        with server(folder) as address:
            run_page(page, folder, address)
    else:
        run_page(page, folder, SERVER)


@pytest.mark.parametrize("page", [p for p in PAGES if p.is_file()], ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_the_tree_in_architecture_names_only_what_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = re.search(r"^```text\n(framework/.*?)^```$", text, re.M | re.S)
    assert tree, "ARCHITECTURE.md has no annotated tree"
    folder = Path()
    for line in tree[1].splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = ROOT / name if name.endswith("/") else ROOT
            assert (ROOT / name).exists(), name
        else:
            assert (folder / name).exists(), folder / name


def test_the_tree_holds_every_module_and_no_other() -> None:
    told, top = set(), ""
    for line in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines():
        heading, entry = re.fullmatch(r"(\w+)/", line), re.match(r"  ([\w/]+\.py) ", line)
        top = heading[1] if heading else top
        told |= {f"{top}/{entry[1]}"} if entry else set()
    modules = {
        str(path.relative_to(ROOT))
        for top in ("framework", "tools", "agents", "indexers", "server", "evals")
        for path in (ROOT / top).rglob("*.py")
        if path.name != "__init__.py"
    }
    left_out = {path for path in modules - told if path.endswith(("commands.py", "config.py"))}
    assert modules - told == left_out
    assert told <= modules


def test_nothing_in_the_documentation_names_a_variable_that_nothing_reads() -> None:
    known = re.compile(r"LECTERN_(CONFIG|CACHE|DATA|LOG|KERNELS|[A-Z]+__[A-Z_]+)\b")
    for page in filter(Path.is_file, PAGES):
        for word in re.findall(r"LECTERN_\w+", page.read_text(encoding="utf-8")):
            assert known.fullmatch(word), f"{page.name}: {word}"


def test_help_is_quick_to_list_every_command() -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    shown = subprocess.run([LECTERN, "--help"], env=environment, capture_output=True, text=True, check=True).stdout
    for command in ("adapters", "ask", "chat", "collections", "doctor", "eval", "index", "models", "search", "serve"):
        assert f"  {command} " in shown
