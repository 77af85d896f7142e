"""`/v1/adapters`: what is added answers under its own model name, and nothing else of the machine is reached."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from framework.config import Settings
from framework.models.adapters import AdapterStore
from framework.models.catalog import Catalog
from framework.testing.adapters import write_lora
from server.config import ServerConfig

pytestmark = pytest.mark.usefixtures("nothing_ships")
TEMPLATE = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<|end|>' }}{% endfor %}{{ 'assistant:' }}"
QUESTION: Any = [{"role": "user", "content": "Why?"}]
LINEARS = {f"layers.{i}.mlp.{name}": (64, 32) for i in range(2) for name in ("gate_proj", "up_proj")}
Make = Callable[..., Path]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete chat model with random weights whose tokens are bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": TEMPLATE}))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=257, max_position_embeddings=512, initializer_range=0.3, eos_token_id=256, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def settings(tmp_path: Path, base: Path) -> Settings:
    engine = {"device": "cpu", "dtype": "float32", "kv_dtype": "float32", "kernels": False, "buffer": 4}
    values = {"lectern": {"home": str(tmp_path / "home")}, "models": {"chat": str(base), "engine": engine}}
    return Settings(values, base=tmp_path)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make("support", seed=1)` is a folder with an adapter where the server looks for them."""
    return lambda name, **options: write_lora(tmp_path / "adapters" / name, LINEARS, **options)


@pytest.fixture
def http(serving: Any, make: Make) -> Iterator[httpx.Client]:
    make("one", seed=1)
    make("two", seed=2)
    running = serving(ServerConfig(adapters=Path("adapters")))
    with httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


def add(http: httpx.Client, base: Path, name: str, source: str, **more: Any) -> httpx.Response:
    return http.post("/v1/adapters", json={"name": name, "base": str(base), "source": source, **more})


def answer(http: httpx.Client, model: object, length: int = 24) -> str:
    """What the model answers; greedy, so the same each time."""
    said = http.post(
        "/v1/chat/completions", json={"model": str(model), "messages": QUESTION, "max_tokens": length, "logprobs": True}
    )
    assert said.status_code == 200, said.text
    return "".join(token["token"] for token in said.json()["choices"][0]["logprobs"]["content"])


def models(http: httpx.Client) -> list[str]:
    return [row["id"] for row in http.get("/v1/models").json()["data"]]


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response in OpenAI's shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error, dict)
    return error


def test_an_adapter_answers_under_its_own_model_name(http: httpx.Client, base: Path) -> None:
    added = add(http, base, "support", "one").json()
    assert added["object"] == "adapter"
    assert added["model"] == f"{base}:support"
    assert models(http).count(added["model"]) == 1
    assert http.get(f"/v1/models/{added['model']}").json()["kind"] == "chat"
    assert http.get("/v1/adapters").json()["data"] == [added]
    assert http.get("/v1/adapters/support").json() == added
    assert answer(http, added["model"]) != answer(http, base)


def test_the_official_client_streams_from_it(http: httpx.Client, base: Path) -> None:
    add(http, base, "support", "one")
    client = OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0)
    model = next(row.id for row in client.models.list() if row.id.endswith(":support"))
    chunks = list(client.chat.completions.create(model=model, messages=QUESTION, max_tokens=8, stream=True))
    assert {chunk.model for chunk in chunks} == {model}
    assert chunks[-1].choices[0].finish_reason == "length"


@contextmanager
def streamed(http: httpx.Client, model: str, length: int) -> Iterator[Iterator[str]]:
    """The tokens of an answer that is being written."""
    body = {"model": model, "messages": QUESTION, "max_tokens": length, "stream": True, "logprobs": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200

        def tokens() -> Iterator[str]:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    choices = json.loads(line.removeprefix("data: "))["choices"]
                    found = choices[0].get("logprobs") if choices else None
                    yield from (token["token"] for token in (found or {}).get("content") or ())

        yield tokens()


def test_a_replaced_adapter_answers_new_requests_while_old_ones_end_on_the_old(http: httpx.Client, base: Path) -> None:
    model, length = add(http, base, "support", "one").json()["model"], 200
    old = answer(http, model, length)
    refused(add(http, base, "support", "two"), 409)
    with streamed(http, model, length) as tokens:
        begun = next(tokens)
        assert add(http, base, "support", "two", replace=True).status_code == 200
        new = answer(http, model, length)
        assert begun + "".join(tokens) == old
    assert new != old
    add(http, base, "support", "one", replace=True)
    assert answer(http, model, length) == old, "nothing of the other one's is left in a cache"


def test_a_removed_adapter_is_gone_for_new_requests_only(http: httpx.Client, base: Path) -> None:
    model, length = add(http, base, "support", "one").json()["model"], 200
    old = answer(http, model, length)
    with streamed(http, model, length) as tokens:
        begun = next(tokens)
        gone = http.delete("/v1/adapters/support").json()
        assert gone == {"id": "support", "object": "adapter", "deleted": True}
        missing = http.post("/v1/chat/completions", json={"model": model, "messages": QUESTION})
        assert refused(missing, 404)["code"] == "model_not_found"
        assert begun + "".join(tokens) == old
    assert model not in models(http)
    assert add(http, base, "support", "two").status_code == 200
    assert answer(http, model, length) != old


def test_a_deactivated_adapter_is_told_by_name_until_it_is_activated(http: httpx.Client, base: Path) -> None:
    model = add(http, base, "support", "one").json()["model"]
    before = answer(http, model)
    assert http.post("/v1/adapters/support/deactivate").json()["active"] is False
    assert model not in models(http)
    error = refused(http.post("/v1/chat/completions", json={"model": model, "messages": QUESTION}), 409)
    assert "'support' is deactivated" in error["message"]
    assert http.post("/v1/adapters/support/activate").json()["active"] is True
    assert answer(http, model) == before


def test_pins_are_remembered(http: httpx.Client, base: Path) -> None:
    add(http, base, "support", "one")
    assert http.post("/v1/adapters/support/pin").json()["pinned"] is True
    assert http.get("/v1/adapters/support").json()["pinned"] is True
    assert http.post("/v1/adapters/support/unpin").json()["pinned"] is False


def test_what_a_command_adds_is_served_at_once(http: httpx.Client, base: Path, settings: Settings, make: Make) -> None:
    resolved = Catalog().resolve(str(base))
    AdapterStore.open(settings).add("outside", make("three", seed=3), resolved, settings.core.tenant)
    assert answer(http, f"{base}:outside")


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/b", "", ".", "..", "a:b", "x" * 65, "a\u0000b"])
def test_a_name_that_could_be_a_path_is_refused(http: httpx.Client, base: Path, name: str) -> None:
    assert refused(add(http, base, name, "one"), 400)["param"] == "name"
    assert http.get("/v1/adapters").json()["data"] == []


@pytest.mark.parametrize(
    "source", ["../../x", "/etc", "one/../../home", "nosuch", "", ".", "..", "link", "~", "a\u0000"]
)
def test_a_source_outside_the_configured_folder_is_not_found(
    http: httpx.Client, base: Path, source: str, tmp_path: Path
) -> None:
    write_lora(tmp_path / "private", LINEARS)
    (tmp_path / "adapters" / "link").symlink_to(tmp_path / "private")
    assert refused(add(http, base, "support", source), 404)["param"] == "source"


def test_a_source_whose_files_are_links_elsewhere_is_refused(http: httpx.Client, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapters" / "sly"
    folder.mkdir()
    for file in write_lora(tmp_path / "private", LINEARS).iterdir():
        (folder / file.name).symlink_to(file)
    assert "link" in refused(add(http, base, "support", "sly"), 400)["message"]


def test_without_a_configured_folder_nothing_is_taken(serving: Any, base: Path) -> None:
    with httpx.Client(base_url=serving().url, timeout=60) as http:
        assert "server.adapters" in refused(add(http, base, "support", "one"), 400)["message"]


def test_adapters_that_can_not_be_served_are_refused_and_the_rest_goes_on(
    http: httpx.Client, base: Path, make: Make
) -> None:
    kept = add(http, base, "kept", "one").json()["model"]
    before = answer(http, kept)
    truncated = make("truncated") / "adapter_model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-3])
    make("dora", use_dora=True)
    make("rank", r=5)
    pickled = make("pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    write_lora(make("other"), {"layers.7.mlp.up_proj": (64, 32)})
    expected = {"truncated": "damaged", "dora": "use_dora", "rank": "shape", "pickled": "may run code",
                "other": "layers.7"}  # fmt: skip
    for source, said in expected.items():
        error = refused(add(http, base, "bad", source), 400)
        assert said in error["message"]
        assert error["param"] == "adapter"
    refused(http.get("/v1/adapters/bad"), 404)
    assert answer(http, kept) == before


def test_another_tenants_adapter_is_as_unknown_as_none_with_each_verb(
    http: httpx.Client, base: Path, settings: Settings, make: Make
) -> None:
    store = AdapterStore.open(settings)
    theirs = store.add("theirs", make("three", seed=3), Catalog().resolve(str(base)), "another")
    for verb, path, body in [
        ("GET", "/v1/adapters/NAME", None),
        ("DELETE", "/v1/adapters/NAME", None),
        ("POST", "/v1/adapters/NAME/activate", None),
        ("POST", "/v1/adapters/NAME/deactivate", None),
        ("POST", "/v1/adapters/NAME/pin", None),
        ("POST", "/v1/adapters/NAME/unpin", None),
        ("GET", f"/v1/models/{base}:NAME", None),
        ("POST", "/v1/chat/completions", {"model": f"{base}:NAME", "messages": QUESTION}),
    ]:
        said = []
        for name in ("theirs", "nosuch"):
            given = {**body, "model": body["model"].replace("NAME", name)} if body else None
            response = http.request(verb, path.replace("NAME", name), json=given)
            said.append(json.dumps(refused(response, 404)).replace(name, "NAME"))
        assert said[0] == said[1]
    assert http.get("/v1/adapters").json()["data"] == []
    assert store.show("theirs", "another") == theirs


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"path": "/etc"}, "path"),
        ({"name": 3}, "name"),
        ({"replace": "yes"}, "replace"),
        ({"base": "nosuch"}, "model"),
        ({"base": "all-minilm-l6-v2"}, "base"),
    ],
)
def test_a_wrong_body_is_refused_with_its_field(
    http: httpx.Client, base: Path, changed: dict[str, Any], param: str
) -> None:
    response = http.post("/v1/adapters", json={"name": "support", "base": str(base), "source": "one", **changed})
    assert refused(response, 404 if param == "model" else 400)["param"] == param
