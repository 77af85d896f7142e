from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from framework.config import CoreConfig, Settings, cache_dir, make_home
from framework.errors import ConfigError, OperatorError


@dataclass(frozen=True)
class Endpoint:
    url: str
    timeout: float = 60.0


@dataclass(frozen=True)
class Example:
    mode: str = "hybrid"
    k: int = 8
    endpoints: dict[str, Endpoint] | None = None


def load(text: str, tmp_path: Path, environ: dict[str, str] | None = None) -> Settings:
    path = tmp_path / "lectern.toml"
    path.write_text(text)
    return Settings.load(path, environ or {})


def test_a_file_and_the_environment_are_read_together_and_the_environment_wins(tmp_path: Path) -> None:
    settings = load('[search]\nmode = "dense"\nk = 3\n', tmp_path, {"LECTERN_SEARCH__K": "5"})
    assert settings.section("search", Example) == Example("dense", 5)


def test_defaults_hold_where_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.load(environ={})
    assert settings.core == CoreConfig()
    assert settings.home == tmp_path / ".lectern"


def test_the_nearest_file_upwards_is_found_and_home_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lectern.toml").write_text('[lectern]\nhome = "state"\n')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert Settings.load(environ={}).home == tmp_path / "state"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[serch]\nk = 1\n", r"Unknown section \[serch\].*Did you mean 'search'"),
        ("k = 1\n", "stands outside a section"),
        ("[search\n", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(text, tmp_path)


def test_an_unknown_key_is_refused_by_its_full_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Unknown key search\.mod .*Did you mean 'mode'") as caught:
        load('[search]\nmod = "dense"\n', tmp_path).section("search", Example)
    assert caught.value.field == "search.mod"


def test_a_value_of_the_wrong_type_names_its_key_and_the_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.k: .*'many'"):
        load('[search]\nk = "many"\n', tmp_path).section("search", Example)


def test_nested_sections_are_typed_too(tmp_path: Path) -> None:
    settings = load('[search.endpoints.local]\nurl = "http://127.0.0.1"\n', tmp_path)
    assert settings.section("search", Example).endpoints == {"local": Endpoint("http://127.0.0.1")}


def test_an_unknown_key_of_a_nested_section_is_refused(tmp_path: Path) -> None:
    settings = load('[search.endpoints.local]\nurl = "http://127.0.0.1"\ntimout = 3\n', tmp_path)
    with pytest.raises(ConfigError, match="timout"):
        settings.section("search", Example)


def test_a_variable_without_a_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LECTERN_K"):
        load("", tmp_path, {"LECTERN_K": "1"})


def test_variables_that_are_read_directly_are_no_sections(tmp_path: Path) -> None:
    plain = {"LECTERN_CACHE": "x", "LECTERN_DATA": "x", "LECTERN_KERNELS": "off", "LECTERN_LOG": "info"}
    assert load("", tmp_path, plain).values == {}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*absent\.toml"):
        Settings.load(tmp_path / "absent.toml", {})


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        Settings.load(tmp_path, {})


def test_a_home_that_can_not_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OperatorError, match=r"can't be made: .* Set lectern\.home"):
            make_home(home)


def test_the_cache_directory_can_be_moved(tmp_path: Path) -> None:
    assert cache_dir({"LECTERN_CACHE": str(tmp_path)}) == tmp_path
    assert cache_dir({}).name == "lectern"


def test_a_variable_names_a_key_at_any_depth(tmp_path: Path) -> None:
    given = {"LECTERN_MODELS__ENGINE__DTYPE": "float32", "LECTERN_MODELS__THREADS": "2"}
    settings = load("[models.engine]\nblock_size = 32\n", tmp_path, given)
    assert settings.values["models"] == {"engine": {"block_size": 32, "dtype": "float32"}, "threads": 2}


def test_a_variable_can_not_reach_into_a_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="threads is a value"):
        load("[models]\nthreads = 2\n", tmp_path, {"LECTERN_MODELS__THREADS__MOST": "1"})
