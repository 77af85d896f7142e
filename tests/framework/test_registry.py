from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from framework import shadowed
from framework.errors import NotFound, OperatorError
from framework.registry import Registry


def registry_with(*points: EntryPoint, monkeypatch: pytest.MonkeyPatch) -> Registry[object]:
    monkeypatch.setattr("framework.registry.entry_points", lambda group: points)
    return Registry("thing", "group")


def test_what_is_registered_is_found_and_goes_before_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    things = registry_with(EntryPoint("path", "os:sep", "group"), monkeypatch=monkeypatch)
    assert things.get("path") == "/"
    things.register("path", "own")
    assert things.get("path") == "own"
    assert list(things) == ["path"]


def test_an_unknown_name_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    things = registry_with(EntryPoint("path", "os:sep", "group"), monkeypatch=monkeypatch)
    with pytest.raises(NotFound, match=r"no thing 'x'.*Known: path"):
        things.get("x")


@pytest.mark.parametrize("value", ["absent_module:x", "os:absent"])
def test_a_broken_plugin_is_named_and_leaves_the_others_alone(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good, broken = EntryPoint("good", "os:sep", "group"), EntryPoint("broken", value, "group")
    things = registry_with(good, broken, monkeypatch=monkeypatch)
    with pytest.raises(OperatorError, match="'broken'"):
        things.get("broken")
    assert things.get("good") == "/"


def test_two_plugins_of_one_name_are_refused_and_leave_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoint("x", "os:sep", "group"), EntryPoint("x", "os:name", "group"), EntryPoint("y", "os:sep", "group")
    things = registry_with(*points, monkeypatch=monkeypatch)
    with pytest.raises(OperatorError, match=r"Two installed packages.*os:name and os:sep"):
        things.get("x")
    assert things.names() == ["x", "y"]
    assert things.get("y") == "/"


def test_one_plugin_found_twice_on_the_path_is_no_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    things = registry_with(
        EntryPoint("x", "os:sep", "group"), EntryPoint("x", "os:sep", "group"), monkeypatch=monkeypatch
    )
    assert things.get("x") == "/"


def test_lecterns_packages_are_its_own_here() -> None:
    assert shadowed() == {}


def test_a_users_folder_of_the_same_name_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("")
    (tmp_path / "script.py").write_text("import framework\n")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "'tools' is" in done.stderr
    assert str(tmp_path / "tools") in done.stderr
