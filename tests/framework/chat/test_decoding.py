from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from framework.messages import Delta, TokenLogprob, ToolCall, assemble
from framework.models.decoding import AnswerWriter
from framework.prompts.tool_formats import CallReader, call_prefix, format_call, partial_suffix


class Pieces:
    """A vocabulary made of the pieces of one text."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token]


def cut(text: bytes, places: list[int]) -> list[bytes]:
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(borders)]


def written(pieces: list[bytes], stop: tuple[str, ...] = (), calls: CallReader | None = None) -> list[Delta]:
    writer = AnswerWriter(Pieces(pieces), stop=stop, calls=calls)
    deltas = []
    for token in range(len(pieces)):
        deltas.append(writer.write(token))
        if writer.stopped:
            break
    deltas.append(writer.finish())
    return [delta for delta in deltas if delta is not None]


CUTS = st.lists(st.integers(0, 10_000), max_size=30)


@given(st.text(st.sampled_from("aé漢😀👩‍🚀 \n"), max_size=30), CUTS)
def test_text_is_exact_however_characters_are_split_among_tokens(text: str, places: list[int]) -> None:
    deltas = written(cut(text.encode(), places))
    assert "".join(delta.content for delta in deltas) == text
    assert not any("\ufffd" in delta.content for delta in deltas)


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), CUTS)
def test_the_answer_ends_before_the_first_stop_string_wherever_tokens_end(
    text: str, stop: list[str], places: list[int]
) -> None:
    """The first one to be complete counts, as for any reader who sees the text arrive."""
    pieces = cut(text.encode(), places)
    found = [place for string in stop if (place := text.find(string)) != -1]
    shown = "".join(delta.content for delta in written(pieces, tuple(stop)))
    if not found:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert not any(string in shown for string in stop)
        assert any(text.startswith(string, len(shown)) for string in stop)


def test_an_incomplete_character_at_the_end_is_dropped_and_bytes_that_are_no_text_are_marked() -> None:
    assert assemble(written([b"ok ", "😀".encode()[:2]])).message.content == "ok "
    assert assemble(written([b"a\xff", b"b"])).message.content == "a\ufffdb"


CALL = ToolCall("0", "search", json.dumps({"query": 'a "</tool_call>" <tool_call> in a string'}))


@given(CUTS, st.sampled_from(["", "I will look.\n", "a <tool_cal b "]))
def test_a_call_comes_out_whole_and_text_around_it_stays_text(places: list[int], before: str) -> None:
    plain = f"{call_prefix(CALL.name)}{CALL.arguments}}}\n</tool_call>"
    reader = CallReader(["search"], str)
    deltas = written(cut((before + plain).encode(), places), calls=reader)
    whole = assemble(deltas).message
    assert whole.content == before
    assert whole.tool_calls == (CALL,)
    assert sum(len(delta.tool_calls) for delta in deltas) == 1
    assert not reader.unfinished


def test_half_a_call_is_never_shown() -> None:
    reader = CallReader(["search"], str)
    deltas = written([b"Well. ", b"<tool_", b'call>\n{"name": "search", "argu'], calls=reader)
    assert assemble(deltas).message.content == "Well. "
    assert not assemble(deltas).message.tool_calls
    assert reader.unfinished


def test_several_calls_are_numbered() -> None:
    text = "\n".join([format_call(CALL, lambda text, _: text)] * 2)
    whole = assemble(written([text.encode()], calls=CallReader(["search"], lambda i: f"c{i}")))
    assert [call.id for call in whole.message.tool_calls] == ["c0", "c1"]
    assert whole.message.content == ""


@given(st.text("ab", max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_part_held_back_is_the_longest_that_may_become_a_marker(text: str, markers: list[str]) -> None:
    possible = [n for n in range(1, len(text) + 1) if any(m.startswith(text[-n:]) and len(m) > n for m in markers)]
    assert partial_suffix(text, markers) == max(possible, default=0)


def test_logprobs_name_the_token_and_the_best_alternatives() -> None:
    writer = AnswerWriter(Pieces([b"yes", "é".encode()[:1]]))
    delta = writer.write(0, (-0.5, [(0, -0.5), (1, -1.5)]))
    assert delta is not None
    assert delta.logprobs == (TokenLogprob("yes", -0.5, (("yes", -0.5), ("bytes:\\xc3", -1.5))),)


def test_logprobs_go_with_the_text_that_is_shown() -> None:
    """Tokens that a stop string cuts off have none."""
    writer = AnswerWriter(Pieces([b"a", b"EN", b"D", b"x"]), stop=("END",))
    deltas = [writer.write(token, (-1.0, [])) for token in range(3)]
    shown = [logprob.token for delta in deltas if delta for logprob in delta.logprobs]
    assert shown == ["a"]
