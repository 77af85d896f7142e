"""Chosen tokens against a slow second implementation, row by row, and each row's independence of the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from framework.engine import sampler
from framework.engine.masks import Mask
from framework.engine.sampler import SCALE, Sampler, draw_weights
from framework.engine.sequence import Request, SampledToken, SamplingParams, Sequence
from framework.errors import CallerError, ModelUnavailable

WIDTH = 97
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@dataclass
class Taker:
    """A mask provider that takes what it is given, or `instead`."""

    instead: int | None = None
    taken: list[int] = field(default_factory=list)

    def allowed(self) -> NDArray[np.bool_]:
        raise AssertionError("the mask is given")

    def accept(self, token: int, logits: Callable[[], NDArray[np.float32]]) -> int:
        self.taken.append(token)
        return token if self.instead is None else self.instead

    def forced(self) -> list[int]:
        return []

    finished = False


def sequence(params: SamplingParams, generated: tuple[int, ...] = (), mask: Any = None) -> Sequence:
    running = Sequence(Request((1, 2, 3, 2), params, mask))
    running.tokens.extend(generated)
    return running


def params(**given: Any) -> SamplingParams:
    return SamplingParams(max_tokens=10, **given)


def reference_scores(
    row: NDArray[np.float32], wanted: SamplingParams, tokens: list[int], generated: list[int], mask: Any
) -> NDArray[np.float32]:
    """One token at a time, one step after another."""
    scores = row.copy()
    for token, bias in wanted.logit_bias.items():
        scores[token] += np.float32(bias)
    for token in set(tokens):
        factor = np.float32(wanted.repetition_penalty)
        scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
    for token in set(generated):
        taken = wanted.presence_penalty + wanted.frequency_penalty * generated.count(token)
        scores[token] -= np.float32(taken)
    if mask is not None:
        scores[~mask] = -np.inf
    return scores


def reference_distribution(scores: NDArray[np.float32], wanted: SamplingParams) -> dict[int, float]:
    """Probability of each token that can be drawn."""
    weights = {
        token: math.exp((float(score) - float(scores.max())) / wanted.temperature) for token, score in enumerate(scores)
    }
    order = sorted((token for token in weights if weights[token] > 0), key=lambda token: (-weights[token], token))
    if wanted.top_k:
        order = order[: wanted.top_k]
    mass, kept, whole = 0.0, [], sum(weights[token] for token in order)
    for token in order:
        if wanted.top_p < 1 and mass >= wanted.top_p * whole:
            break
        kept.append(token)
        mass += weights[token]
    kept = [token for token in kept if weights[token] >= wanted.min_p * weights[kept[0]]]
    total = sum(weights[token] for token in kept)
    return {token: weights[token] / total for token in kept}


def reference_uniform(seed: int, position: int) -> float:
    """SplitMix64's output function, in Python's integers."""

    def mixed(bits: int) -> int:
        bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
        return bits ^ (bits >> 31)

    return (mixed((mixed(seed % 2**64) + (position + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53


def reference_token(row: NDArray[np.float32], running: Sequence, mask: Any) -> int:
    wanted = running.request.params
    scores = reference_scores(row, wanted, running.tokens, running.tokens[len(running.request.prompt) :], mask)
    if wanted.temperature == 0:
        return int(np.argmax(scores))
    kept = reference_distribution(scores, wanted)
    assert wanted.seed is not None
    left = reference_uniform(wanted.seed, len(running.tokens))
    for token in sorted(kept):
        left -= kept[token]
        if left < 0:
            return token
    return max(kept)


def normal(seed: int, rows: int = 1, width: int = WIDTH) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((rows, width)) * 3).astype(np.float32)


@st.composite
def a_row(draw: st.DrawFn) -> tuple[NDArray[np.float32], Sequence, Mask]:
    row = normal(draw(st.integers(0, 2**32)))[0]
    wanted = params(
        temperature=draw(st.sampled_from([0.0, 0.0, 0.3, 1.0, 2.0])),
        top_k=draw(st.sampled_from([0, 0, 1, 5, WIDTH, 10**6])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.9, 0.4, 1e-6])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.05, 1.0])),
        presence_penalty=draw(st.sampled_from([0.0, 1.5, -2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.7, -1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.8])),
        logit_bias=draw(st.dictionaries(st.integers(0, WIDTH - 1), st.floats(-100, 100, width=32), max_size=3)),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        logprobs=draw(st.sampled_from([None, None, 0, 3, 20])),
    )
    generated = draw(st.lists(st.integers(0, WIDTH - 1), max_size=8))
    mask = None
    if draw(st.booleans()):
        mask = np.random.default_rng(draw(st.integers(0, 2**32))).random(WIDTH) < 0.3
        mask[draw(st.integers(0, WIDTH - 1))] = True
    return row, sequence(wanted, tuple(generated), None if mask is None else Taker()), mask


def run(rows: list[tuple[NDArray[np.float32], Sequence, Mask]], device: str = "cpu") -> list[Any]:
    logits = torch.from_numpy(np.stack([row for row, _, _ in rows])).to(device)
    before = logits.clone()
    results = Sampler().sample(logits, [running for _, running, _ in rows], [mask for _, _, mask in rows])
    assert torch.equal(logits.nan_to_num(7e7), before.nan_to_num(7e7)), "the logits are the runner's"
    return results


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=150, deadline=None)
@given(st.lists(a_row(), min_size=1, max_size=6))
def test_every_row_gets_the_token_of_the_slow_way(
    device: str, rows: list[tuple[NDArray[np.float32], Sequence, Mask]]
) -> None:
    for (row, running, mask), sampled in zip(rows, run(rows, device), strict=True):
        assert isinstance(sampled, SampledToken)
        assert sampled.token == reference_token(row, running, mask)
        if isinstance(running.request.mask, Taker):
            assert running.request.mask.taken == [sampled.token]


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=75, deadline=None)
@given(st.lists(a_row(), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_a_row_in_any_batch_and_any_place_gets_what_it_gets_alone(
    device: str, rows: list[tuple[NDArray[np.float32], Sequence, Mask]], random: Any
) -> None:
    alone = [run([row], device)[0] for row in rows]
    assert run(rows, device) == alone
    order = list(range(len(rows)))
    random.shuffle(order)
    assert run([rows[place] for place in order], device) == [alone[place] for place in order]


def test_of_a_vocabulary_of_real_size_too_a_row_gets_what_it_gets_alone() -> None:
    logits = normal(0, 8, 50_000)
    rows: list[tuple[NDArray[np.float32], Sequence, Mask]] = [
        (row, sequence(params(temperature=1.0, top_p=0.95, seed=place, logprobs=5)), None)
        for place, row in enumerate(logits)
    ]
    assert run(rows) == [run([row])[0] for row in rows]
    for (row, running, _), sampled in zip(rows, run(rows), strict=True):
        assert sampled.token == reference_token(row, running, None)


@settings(max_examples=100, deadline=None)
@given(st.lists(a_row().filter(lambda row: row[1].request.params.temperature > 0), min_size=1, max_size=4))
def test_tokens_are_drawn_with_their_probabilities(rows: list[tuple[NDArray[np.float32], Sequence, Mask]]) -> None:
    wanted = [running.request.params for _, running, _ in rows]
    weights = draw_weights(torch.from_numpy(np.stack([row for row, _, _ in rows])), wanted).numpy()
    for (row, _, _), p, got in zip(rows, wanted, weights, strict=True):
        expected = reference_distribution(row, p)
        certain = {token for token, probability in expected.items() if probability > 1e-10}
        assert certain <= set(np.flatnonzero(got).tolist()) <= set(expected)
        for token, probability in expected.items():
            assert abs(got[token] / got.sum() - probability) < 1e-9
        assert got.max() == SCALE


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.91}, {0, 1, 2, 3}),
        ({"top_p": 0.7}, {0, 1}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 3, "top_p": 0.6}, {0, 1}),  # of the 0.9 that top-k leaves, not of 1
        ({"min_p": 0.21}, {0, 1, 2}),
        ({"min_p": 0.1, "top_p": 0.999}, {0, 1, 2, 3, 4}),
    ],
)
def test_which_tokens_are_left(wanted: dict[str, Any], kept: set[int]) -> None:
    scores = torch.log(torch.tensor([[0.49, 0.26, 0.15, 0.051, 0.049]]))
    weights = draw_weights(scores, [params(temperature=1.0, **wanted)])[0]
    assert set(weights.nonzero()[:, 0].tolist()) == kept


@pytest.mark.parametrize("device", DEVICES)
def test_among_equal_tokens_the_lowest_ids_are_taken(device: str) -> None:
    scores = torch.zeros((1, 50), device=device)
    scores[0, 40] = 1.0
    for wanted in (params(temperature=1.0, top_k=4), params(temperature=1.0, top_p=0.1)):
        kept = draw_weights(scores, [wanted])[0].nonzero()[:, 0].tolist()
        assert kept == [*range(len(kept) - 1), 40]
    flat = np.zeros(50, dtype=np.float32)
    chosen = run([(flat, sequence(params(logprobs=3)), None)], device)[0]
    assert chosen.token == 0
    assert [token for token, _ in chosen.top] == [0, 1, 2]
    assert run([(flat, sequence(params()), None)], device)[0].token == 0


def test_log_probabilities_are_the_models_own() -> None:
    """Whatever was added to the logits, and whatever was taken instead."""
    row = normal(4)[0]
    expected = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
    order = sorted(range(WIDTH), key=lambda token: (-row[token], token))
    worst = order[-1]
    mask = np.zeros(WIDTH, dtype=np.bool_)
    mask[[order[5], worst]] = True
    wanted = params(logprobs=4, logit_bias={worst: 90.0}, temperature=0.5, seed=1)
    for provider in (Taker(), Taker(instead=worst)):
        sampled = run([(row, sequence(wanted, mask=provider), mask)])[0]
        assert sampled.token == worst
        assert math.isclose(sampled.logprob, expected[worst], abs_tol=1e-9)
        assert [token for token, _ in sampled.top] == order[:4]
        np.testing.assert_allclose([value for _, value in sampled.top], expected[order[:4]], atol=1e-9)
    assert run([(row, sequence(params(logprobs=0)), None)])[0].top == ()
    assert run([(row[:3], sequence(params(logprobs=20)), None)])[0].top[0][0] == int(row[:3].argmax())


def test_what_a_provider_takes_instead_counts_and_it_sees_the_logits_as_they_came() -> None:
    row = normal(5)[0]
    seen = []

    class Looks(Taker):
        def accept(self, token: int, logits: Callable[[], NDArray[np.float32]]) -> int:
            seen.append(logits())
            return 7

    running = sequence(params(logit_bias={3: 50.0}), mask=Looks())
    assert run([(row, running, np.ones(WIDTH, dtype=np.bool_))])[0] == SampledToken(7)
    np.testing.assert_array_equal(seen[0], row)


def fault(kind: str) -> tuple[NDArray[np.float32], Sequence, Mask]:
    row, nothing = normal(6)[0], np.zeros(WIDTH, dtype=np.bool_)

    class Raises(Taker):
        def accept(self, token: int, logits: Callable[[], NDArray[np.float32]]) -> int:
            raise ZeroDivisionError("a grammar's own fault")

    if kind == "nan":
        row[50] = np.nan
    if kind == "inf":
        row[50] = np.inf
    if kind == "all impossible":
        row[:] = -np.inf
    return {
        "nothing allowed": (row, sequence(params(temperature=1.0), mask=Taker()), nothing),
        "no such token": (row, sequence(params(logit_bias={WIDTH: 1.0})), None),
        "mask failed": (row, sequence(params(), mask=Taker()), KeyError("mask")),
        "mask of another size": (row, sequence(params(), mask=Taker()), nothing[:-1]),
        "accept failed": (row, sequence(params(), mask=Raises()), ~nothing),
    }.get(kind, (row, sequence(params(temperature=1.0, logprobs=2)), None))


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("nan", ModelUnavailable),
        ("inf", ModelUnavailable),
        ("all impossible", ModelUnavailable),
        ("nothing allowed", CallerError),
        ("no such token", CallerError),
        ("mask failed", KeyError),
        ("mask of another size", ValueError),
        ("accept failed", ZeroDivisionError),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_a_fault_ends_its_own_request_only(device: str, kind: str, error: type[Exception]) -> None:
    good: tuple[NDArray[np.float32], Sequence, Mask] = (normal(7)[0], sequence(params(temperature=1.0, seed=3)), None)
    plain: tuple[NDArray[np.float32], Sequence, Mask] = (normal(8)[0], sequence(params()), None)
    first, failed, last = run([good, fault(kind), plain], device)
    assert isinstance(failed, error)
    assert [first, last] == run([good, plain], device)
    if kind in ("mask failed", "nan"):
        taker = fault(kind)[1].request.mask
        assert not isinstance(taker, Taker) or taker.taken == []


def test_one_impossible_token_does_not_make_a_row_one() -> None:
    row = normal(9)[0]
    row[::2] = -np.inf
    for wanted in (params(), params(temperature=1.0, seed=0), params(repetition_penalty=1.5, logprobs=WIDTH)):
        assert run([(row, sequence(wanted), None)])[0].token % 2 == 1


def test_preemption_moves_no_draw_and_each_position_has_its_own() -> None:
    row = np.zeros(WIDTH, dtype=np.float32)
    wanted = params(temperature=1.0, seed=11)
    drawn = [run([(row, sequence(wanted, (5,) * length), None)])[0].token for length in range(40)]
    assert drawn == [run([(row, sequence(wanted, (9,) * length), None)])[0].token for length in range(40)]
    assert len(set(drawn)) > 20


def test_without_a_seed_equal_requests_differ_and_one_request_does_not_change_its_mind() -> None:
    row = torch.zeros((1, 100_000))
    sampler = Sampler()
    running = [sequence(params(temperature=1.0)) for _ in range(8)]
    first = [sampler.sample(row, [one], [None])[0] for one in running]
    assert first == [sampler.sample(row, [one], [None])[0] for one in running]
    assert len({sampled.token for sampled in first if isinstance(sampled, SampledToken)}) > 4
    assert first != [Sampler().sample(row, [one], [None])[0] for one in running]


def test_uniforms_fill_the_interval_evenly() -> None:
    """A fixed seed's own sequence, so the bound holds or it does not."""
    drawn = np.sort([reference_uniform(seed, position) for seed in range(40) for position in range(50)])
    assert np.abs(drawn - (np.arange(2000) + 0.5) / 2000).max() < 0.03


@pytest.mark.parametrize("flat", [False, True])
def test_looking_at_the_few_best_first_keeps_the_same_tokens(flat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the border lies: within the few, beyond them, among equal ones."""
    scores = torch.randn(20, 300, generator=torch.Generator().manual_seed(3)) * (0.01 if flat else 3.0)
    scores[:, 50:90] = scores[:, 50:51]
    choices = [(k, p) for k in (0, 1, 7, 60, 299) for p in (0.05, 0.5, 0.999, 1.0)]
    params = [SamplingParams(max_tokens=1, temperature=1.0, top_k=k, top_p=p) for k, p in choices]
    kept = []
    for few in (8, 64, 10_000):
        monkeypatch.setattr(sampler, "FEW", few)
        kept.append(draw_weights(scores, params))
    assert torch.equal(kept[0], kept[2])
    assert torch.equal(kept[1], kept[2])
