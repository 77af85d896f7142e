"""`lectern serve` as a person runs it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from framework.config import Settings
from framework.errors import ConfigError, OperatorError
from server.commands import serve
from server.config import ServerConfig, is_loopback

MAIN = "from framework.cli import main; main()"
WITH_SCRIPTS = """
from framework.models.chat import PROVIDERS
from framework.testing.scripted import scripted_from_file
PROVIDERS.register("scripted", scripted_from_file)
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(serve, arguments)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, dict[str, str]]]:
    """The command in a process of its own, with its address and what it printed about it."""
    script = tmp_path / "script.jsonl"
    script.write_text('"Good morning."\n' * 3)
    environment = {**os.environ, "LECTERN_LOG": "info"}
    command = [sys.executable, "-c", WITH_SCRIPTS + MAIN, "serve", "--port", "0", "--model", f"scripted:{script}"]
    with (
        (tmp_path / "err").open("w") as err,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True, env=environment) as process,
    ):
        assert process.stdout
        first = process.stdout.readline()
        try:
            yield process, first.split()[2].removesuffix("/v1"), environment
        finally:
            process.kill()


def test_it_says_where_it_is_and_serves_until_it_is_told_to_stop(
    serving: tuple[subprocess.Popen[str], str, dict[str, str]], tmp_path: Path, settings: Settings
) -> None:
    process, url, environment = serving
    assert process.stdout
    example = "".join(process.stdout.readline() for _ in range(4))
    curl = example[example.index("curl") :]
    assert f"curl {url}/v1/chat/completions" in curl
    body = json.loads(curl[curl.index("-d '") + 4 : curl.rindex("'")])
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "Good morning."
    assert (settings.home / "server.json").exists()

    page = tmp_path / "page.md"
    page.write_text("# Page\n\nThe river has nine bridges.\n")
    lectern = [sys.executable, "-c", MAIN]
    indexed = subprocess.run([*lectern, "index", str(page), "-c", "pages"], env=environment, capture_output=True)
    assert indexed.returncode == 0, indexed.stderr
    searched = subprocess.run(
        [*lectern, "search", "bridges", "-c", "pages", "--json"], env=environment, capture_output=True, text=True
    )
    assert searched.returncode == 0, searched.stderr
    assert "nine bridges" in searched.stdout
    assert "collection:pages" in httpx.get(f"{url}/v1/models").text

    second = subprocess.run([*lectern, "serve", "--port", "0"], env=environment, capture_output=True, text=True)
    assert second.returncode == 3
    assert f"process {process.pid} at {url}" in second.stderr

    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert not (settings.home / "server.json").exists()
    log = [json.loads(line) for line in (tmp_path / "err").read_text().splitlines()]
    requests = [line for line in log if line["message"] == "request"]
    assert {"/v1/chat/completions", "/internal/index", "/internal/search"} <= {line["path"] for line in requests}
    assert "bridges" not in (tmp_path / "err").read_text()


def test_another_machines_address_needs_to_be_asked_for() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        result = run("--host", host)
        assert isinstance(result.exception, ConfigError)
        assert "--allow-remote" in str(result.exception)
    ServerConfig(host="0.0.0.0", allow_remote=True).check_reach()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "")),
    ],
)
def test_what_counts_as_this_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("--port", str(taken.getsockname()[1]))
    assert isinstance(result.exception, OperatorError)
    assert "--port 0" in str(result.exception)


@pytest.mark.parametrize(
    ("key", "value"),
    [("port", 70_000), ("max_concurrent", 0), ("stall_timeout", 0), ("max_body", 10), ("grace", 0), ("colour", "red")],
)
def test_wrong_settings_are_named(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"server.{key}"):
        Settings({"server": {key: value}}, tmp_path).section("server", ServerConfig)
