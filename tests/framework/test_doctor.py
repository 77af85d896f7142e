"""The doctor finds what is amiss and says what to do; what is well passes without a word of advice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import framework.doctor
from framework.doctor import Finding, doctor, examine
from framework.engine.kernels.build import library
from framework.retrieval.lock import DirectoryLock
from framework.testing.tiny_chat import write_tiny_chat


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LECTERN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def write(text: str) -> None:
    Path("lectern.toml").write_text(text)


def found(name: str) -> Finding:
    return next(finding for finding in examine() if finding.name == name)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(doctor, arguments)


def test_a_sound_installation_has_nothing_to_mend() -> None:
    result = run()
    assert result.exit_code == 0, result.output
    assert "Nothing to mend." in result.output
    assert "torch" in result.output


def test_json_holds_the_same_findings() -> None:
    result = run("--json")
    rows = json.loads(result.output)
    assert {row["area"] for row in rows} >= {"installed", "configuration", "state", "models"}
    assert set(rows[0]) == {"area", "name", "detail", "fix"}


def test_a_wrong_key_is_named_with_advice_and_status_3() -> None:
    write("[server]\nprot = 8000\n[search]\nk = 5\n")
    result = run()
    assert result.exit_code == 3
    assert "! [server]" in result.output
    assert "-> Did you mean 'port'?" in result.output
    assert "[search]: 1 keys, valid" in result.output


def test_a_file_that_is_no_toml_does_not_hide_the_rest() -> None:
    write("[server\n")
    assert found("file").fix
    assert not found("torch").fix


def test_a_model_that_nobody_knows_is_told() -> None:
    write('[models]\nchat = "no such model"\nembedder = "owner/name"\n')
    assert "no such model" in found("chat").detail
    assert found("chat").fix
    assert found("embedder").fix == "Run: lectern models pull owner/name"


def test_an_adapter_s_base_is_looked_at() -> None:
    write('[models]\nchat = "smollm2-135m-instruct:support"\n')
    assert found("chat").detail.startswith("smollm2-135m-instruct, from the wheel")
    assert not found("chat").fix


def test_what_computes_the_chat_model_is_told(tmp_path: Path) -> None:
    folder = write_tiny_chat(tmp_path / "tiny")
    write(f'[models]\nchat = "{folder}"\n[models.engine]\ndevice = "cpu"\nkernels = false\n')
    assert found("kernels").detail == "turned off"
    assert found("decoder").detail.endswith("is computed by torch")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt_neox"}))
    assert found("decoder").detail.endswith("is computed by the transformers library")


def test_kernels_are_told_to_be_compiled_where_there_is_a_compiler(tmp_path: Path) -> None:
    folder = write_tiny_chat(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "head_dim": 16}))
    write(f'[models]\nchat = "{folder}"\n[models.engine]\ndevice = "cpu"\n')
    compiled = found("kernels").detail.startswith("compiled with ")
    assert compiled == (library() is not None)
    assert found("decoder").detail.endswith("the C++ kernels" if compiled else "torch")
    assert not found("decoder").fix


def test_a_device_that_is_not_here_is_told(tmp_path: Path) -> None:
    folder = write_tiny_chat(tmp_path / "tiny")
    write(f'[models]\nchat = "{folder}"\n[models.engine]\ndevice = "tpu"\n')
    assert "there is no device 'tpu'" in found("decoder").detail
    assert found("decoder").fix


def test_a_misspelt_choice_of_kernels_is_told() -> None:
    environment = {**os.environ, "LECTERN_KERNELS": "of"}
    command = [sys.executable, "-c", "from framework.cli import main; main()", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 3, done.stderr + done.stdout
    assert any("LECTERN_KERNELS is 'of'" in row["detail"] for row in json.loads(done.stdout))


def test_no_compiler_is_told_and_nothing_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.engine.kernels.build.find_compiler", lambda: None)
    assert "no C++ compiler" in found("kernels").detail
    assert not found("kernels").fix


def test_a_held_store_names_its_holder(tmp_path: Path) -> None:
    store = tmp_path / "home" / "store"
    lock = DirectoryLock(store)
    lock.acquire()
    try:
        told = found("store")
    finally:
        lock.release()
    assert "in use by" in told.detail
    assert not told.fix
    assert "held by nobody" in found("store").detail


def test_a_place_that_can_not_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LECTERN_LECTERN__HOME", str(tmp_path / "file" / "home"))
    assert "LECTERN_LECTERN__HOME" in found("home").fix


def test_a_missing_library_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framework.doctor, "requires", lambda _: ["no-such-package>=1", 'other; extra == "x"'])
    assert found("no-such-package") == Finding(
        "installed", "no-such-package", "missing", "Run: pip install no-such-package"
    )
    assert found("extra [x]").detail == "without other"


def test_a_broken_plugin_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "no_such_module:tool", "lectern.tools")
    own = framework.doctor.entry_points
    monkeypatch.setattr(
        framework.doctor, "entry_points", lambda group: [broken] if group == "lectern.tools" else own(group=group)
    )
    assert "no_such_module" in found("lectern.tools broken").detail


class Answers(BaseHTTPRequestHandler):
    """A model server that wants a key."""

    def do_GET(self) -> None:
        self.send_response(200 if self.headers["Authorization"] == "Bearer right" else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_endpoints_are_reached_with_their_keys(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(f'[models.endpoints.big]\nbase_url = "{endpoint}"\nmodel = "m"\napi_key_env = "BIG_KEY"\n')
    assert "BIG_KEY is not set" in found("big").detail
    monkeypatch.setenv("BIG_KEY", "wrong")
    assert "refuses the key" in found("big").detail
    monkeypatch.setenv("BIG_KEY", "right")
    assert found("big") == Finding("endpoints", "big", f"{endpoint} answers (200)")


def test_an_endpoint_that_is_down_is_told() -> None:
    write('[models.endpoints.big]\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "m"\n')
    assert "can't be reached" in found("big").detail
    assert "base_url" in found("big").fix


def test_it_runs_as_a_command() -> None:
    command = [sys.executable, "-c", "from framework.cli import main; main()", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)
