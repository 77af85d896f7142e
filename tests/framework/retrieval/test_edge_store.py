"""What Qdrant Edge's store must survive, beyond the contract that all stores share."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework.documents import Scalar
from framework.errors import NotFound, OperatorError, StoreCorrupt, StoreLocked
from framework.retrieval import qdrant
from framework.retrieval.filters import All, AnyOf, Eq, Filter, In, Not, Range, matches
from framework.retrieval.qdrant import EdgeStore
from framework.testing.store_contract import (
    ANALYZER,
    EMBEDDER,
    HERE,
    SPACE,
    assert_same,
    found,
    identity,
    make_point,
    some_points,
)

QUERY = EMBEDDER.embed_query("stone")

KEYS = st.sampled_from(["a", "a.b", 'x"y', "$z", "a[]", "", "tokens", "numbers", "payload", "é", "\\", "null"])
NUMBERS = st.one_of(st.integers(-3, 3), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
VALUES = st.one_of(
    st.sampled_from(["", "1", "True", "true", "x", "'; DROP TABLE--", "\ud800", "\0"]),
    st.booleans(),
    NUMBERS,
    st.sampled_from([0, 1, 1.0, -0.0, 2**53, 2**53 + 1, 2.0**53]),
)
BOUNDS = st.one_of(st.none(), NUMBERS, st.sampled_from([float("inf"), float("-inf"), 2**53, 10**400]))
FILTERS = st.recursive(
    st.one_of(
        st.builds(Eq, KEYS, VALUES),
        st.builds(In, KEYS, st.lists(VALUES, max_size=3).map(tuple)),
        st.builds(Range, KEYS, BOUNDS, BOUNDS),
    ),
    lambda part: st.one_of(
        st.builds(Not, part),
        st.builds(All, st.lists(part, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(part, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)
PAYLOADS = st.lists(st.dictionaries(KEYS, VALUES, max_size=4), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeStore]:
    store = EdgeStore(tmp_path_factory.mktemp("edge"))
    store.create(*HERE, SPACE)
    yield store
    store.close()


@given(PAYLOADS, st.lists(FILTERS, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_filter_passes_what_its_meaning_says(
    shared: EdgeStore, payloads: list[dict[str, Scalar]], filters: list[Filter]
) -> None:
    shared.delete(*HERE, [id for id, _ in shared.payloads(*HERE)])
    shared.upsert(*HERE, [make_point(i, "stone") for i in range(len(payloads))])
    shared.set_payload(*HERE, {identity(i): payload for i, payload in enumerate(payloads)})
    for filter in filters:
        expected = [identity(i) for i, payload in enumerate(payloads) if matches(filter, payload)]
        assert found(shared.dense(*HERE, QUERY, 10, filter)) == expected, filter


def test_making_a_store_touches_nothing(tmp_path: Path) -> None:
    EdgeStore(tmp_path / "store").close()
    with pytest.raises(NotFound):
        EdgeStore(tmp_path / "store").dense(*HERE, QUERY, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_reopened_store_answers_as_before(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path)
    store.create(*HERE, SPACE)
    store.upsert(*HERE, some_points())
    store.delete(*HERE, [identity(number) for number in range(50)])
    terms = ANALYZER.query("stone bridge")
    before = store.dense(*HERE, QUERY, 20), store.lexical(*HERE, terms, 20), list(store.payloads(*HERE))
    store.close()
    again = EdgeStore(tmp_path)
    assert again.space(*HERE) == SPACE
    assert (again.dense(*HERE, QUERY, 20), again.lexical(*HERE, terms, 20), list(again.payloads(*HERE))) == before
    again.close()
    assert again.count(*HERE) == 150
    again.close()


def test_optimizing_changes_no_answer(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path)
    store.create(*HERE, SPACE)
    points = [make_point(number, f"stone {number % 40}", row=number) for number in range(3000)]
    store.upsert(*HERE, points)
    store.delete(*HERE, [point.id for point in points[:2000]])
    terms = ANALYZER.query("stone 7")
    before = store.dense(*HERE, QUERY, 30), store.lexical(*HERE, terms, 30, Range("row", 2500))
    assert store.optimize(*HERE)
    assert_same(store.dense(*HERE, QUERY, 30), before[0])
    assert_same(store.lexical(*HERE, terms, 30, Range("row", 2500)), before[1])
    assert not store.optimize(*HERE)
    store.close()


WRITE = """
import os, signal, sys
from pathlib import Path
from framework.retrieval.qdrant import EdgeStore
from framework.testing.store_contract import HERE, SPACE, make_point
store = EdgeStore(Path(sys.argv[1]))
store.create(*HERE, SPACE)
store.upsert(*HERE, [make_point(i, f"stone {i}", row=i) for i in range(700)])
store.flush(*HERE)
store.upsert(*HERE, [make_point(i, f"stone {i}", row=i) for i in range(700, 900)])
"""


def run(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=False)


def test_a_killed_process_loses_no_acknowledged_point(tmp_path: Path) -> None:
    killed = run(WRITE + "os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    assert killed.returncode == -9, killed.stderr
    store = EdgeStore(tmp_path)
    assert [payload["row"] for _, payload in store.payloads(*HERE)] == list(range(900))
    assert len(store.lexical(*HERE, ANALYZER.query("stone"), 1000)) == 900
    store.close()


def test_a_process_killed_while_making_a_collection_leaves_none(tmp_path: Path) -> None:
    code = WRITE.replace(
        "store = EdgeStore",
        "from framework.retrieval import qdrant\n"
        "qdrant._write_space = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nstore = EdgeStore",
    )
    assert run(code, tmp_path).returncode == -9
    store = EdgeStore(tmp_path)
    with pytest.raises(NotFound):
        store.count(*HERE)
    store.create(*HERE, SPACE)
    assert store.count(*HERE) == 0
    store.close()


def test_what_a_process_killed_while_dropping_left_is_cleared(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path)
    store.create(*HERE, SPACE)
    store.close()
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    folder.rename(folder.with_suffix(".dropped"))
    store.create(*HERE, SPACE)
    assert not folder.with_suffix(".dropped").exists()
    store.close()


def test_a_second_process_is_refused_by_name_and_harms_nothing(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path)
    store.create(*HERE, SPACE)
    store.upsert(*HERE, some_points())
    second = run(WRITE, tmp_path)
    assert second.returncode != 0
    assert "StoreLocked" in second.stderr
    assert "in use by process" in second.stderr
    assert store.count(*HERE) == 200
    store.close()
    assert run(WRITE, tmp_path).returncode == 0


def test_a_shard_that_something_else_has_open_is_reported_as_locked(tmp_path: Path) -> None:
    from qdrant_edge import EdgeShard

    store = EdgeStore(tmp_path)
    store.create(*HERE, SPACE)
    store.close()
    [shard] = tmp_path.glob("*/shard")
    stranger = EdgeShard.load(str(shard))
    with pytest.raises(StoreLocked):
        store.count(*HERE)
    stranger.close()
    assert store.count(*HERE) == 0
    store.close()


def test_a_nearly_full_disk_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EdgeStore(tmp_path)
    store.create(*HERE, SPACE)
    monkeypatch.setattr(qdrant, "MIN_FREE", 2**60)
    with pytest.raises(OperatorError, match="nearly full"):
        store.upsert(*HERE, some_points())
    with pytest.raises(OperatorError, match="nearly full"):
        store.create("acme", "second", SPACE)
    monkeypatch.undo()
    assert store.count(*HERE) == 0
    store.upsert(*HERE, some_points())
    assert store.count(*HERE) == 200
    store.close()


REFUSED = """
import resource
from framework.errors import OperatorError
store.create("acme", "empty", SPACE)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
for write in (
    lambda: store.create("acme", "new", SPACE),
    lambda: store.upsert("acme", "empty", [make_point(1, "stone")]),
):
    try:
        write()
    except OperatorError as error:
        print(error)
"""


def test_a_failing_write_is_loud_and_harms_nothing_that_was_written(tmp_path: Path) -> None:
    """The operating system refuses every file that grows beyond 64 KiB, as a full quota does."""
    failed = run(WRITE + REFUSED, tmp_path)
    assert failed.returncode == 0, failed.stderr
    assert failed.stdout.count("File too large") == failed.stdout.count("lectern index verify") == 2
    store = EdgeStore(tmp_path)
    assert len(list(store.payloads(*HERE))) == store.count(*HERE) == 900
    with pytest.raises(NotFound):
        store.count("acme", "new")
    for collection in ("new", "empty"):
        store.create("acme", collection, SPACE)
        store.upsert("acme", collection, some_points())
        assert {identity(number) for number in range(200)} == {id for id, _ in store.payloads("acme", collection)}
    store.close()


def test_names_stay_inside_the_root(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = EdgeStore(root)
    for place in (("../../x", "/etc"), ("..", "."), ("CON", "a:b"), ("ü", "Ü"), ("x" * 128, "y" * 128)):
        store.create(*place, SPACE)
        store.upsert(*place, [make_point(1, "stone")])
    store.close()
    assert list(tmp_path.iterdir()) == [root]
    records = [json.loads(path.read_text()) for path in root.glob("*/space.json")]
    assert sorted(record["tenant"] for record in records) == sorted(["../../x", "..", "CON", "ü", "x" * 128])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1, "space": {"unknown": 1}}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    store = EdgeStore(tmp_path)
    store.create(*HERE, SPACE)
    store.close()
    [path] = tmp_path.glob("*/space.json")
    path.write_text(text)
    with pytest.raises(StoreCorrupt, match=r"space\.json"):
        store.count(*HERE)


def test_a_damaged_shard_is_an_operators_error(tmp_path: Path) -> None:
    store = EdgeStore(tmp_path)
    store.create(*HERE, SPACE)
    store.close()
    [path] = tmp_path.glob("*/shard/edge_config.json")
    path.write_text("{")
    with pytest.raises(OperatorError):
        store.count(*HERE)
    store.close()
