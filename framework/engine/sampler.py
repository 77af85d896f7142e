"""Choosing the next tokens: a row of logits for each request, its own parameters, all rows at once.

The logits of a row go through these steps, in this order: logit bias; repetition, frequency and presence penalties; the
mask; temperature; top-k; top-p (of the mass that top-k left); min-p; and one draw. Greedy rows end after the mask, with
the highest logit, among equal ones that of the lowest id.

A row's token never depends on the rows beside it. Probabilities become integers before they are added up, so that sums
are exact in any order and on any device, and a draw is a function of the request's seed and the token's position.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from framework.engine.masks import Mask
from framework.engine.sequence import SampledToken, SamplingParams
from framework.engine.sequence import Sequence as Running
from framework.errors import CallerError, ModelUnavailable

Sampled: TypeAlias = SampledToken | Exception
SCALE = 2.0**40  # weight of a row's most probable token; what is 2^41 times rarer has none. Vocabularies up to 2^22 fit
FEW = 1024
ROWS = 2  # drawn at once on a CPU: their weights stay in its cache, and no memory has to be had from the system
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Sampler:
    """Chooses tokens. It keeps nothing about a request: what it needs is in the sequence."""

    def __init__(self) -> None:
        self._entropy = secrets.randbits(64)

    def sample(self, logits: torch.Tensor, sequences: Sequence[Running], masks: Sequence[Mask]) -> list[Sampled]:
        """The next token of each sequence, or the exception that ends its request and no other.

        Args:
            logits: shape (sequences, vocabulary size), float32, on any device; not changed.
            masks: what `MaskWorkers.compute` gave for each sequence. An exception is handed on.

        Exceptions are: ModelUnavailable where the logits are not numbers; CallerError where a bias names no token of
        this model or where the mask allows none; whatever `MaskProvider.accept` raised.
        """
        highest, greedy = _best(logits)
        chosen: list[int | Exception] = [
            _refusal(sequence.request.params, mask, value, logits.shape[1]) or token
            for sequence, mask, value, token in zip(sequences, masks, highest, greedy, strict=True)
        ]
        rows = [
            row
            for row, token in enumerate(chosen)
            if isinstance(token, int) and (masks[row] is not None or _is_special(sequences[row].request.params))
        ]
        if rows:
            picked = self._choose(logits[rows], [sequences[row] for row in rows], [masks[row] for row in rows])
            for row, token in zip(rows, picked, strict=True):
                chosen[row] = token
        for row, mask in enumerate(masks):
            if mask is not None:
                chosen[row] = _accepted(sequences[row], chosen[row], logits[row])
        return _reported(logits, [sequence.request.params for sequence in sequences], chosen)

    def _choose(
        self, scores: torch.Tensor, sequences: Sequence[Running], masks: Sequence[Mask]
    ) -> list[int | Exception]:
        """Tokens of rows that want more than their highest logit. `scores` is changed."""
        params = [sequence.request.params for sequence in sequences]
        _add_bias(scores, [p.logit_bias for p in params])
        _divide_repeated(scores, [s.tokens for s in sequences], [p.repetition_penalty for p in params])
        _subtract_penalties(scores, [s.tokens[len(s.request.prompt) :] for s in sequences], params)
        _mask(scores, masks)
        highest, tokens = _best(scores)
        chosen: list[int | Exception] = [
            token if math.isfinite(value) else _nothing_left() for token, value in zip(tokens, highest, strict=True)
        ]
        drawn = [row for row, p in enumerate(params) if p.temperature > 0 and isinstance(chosen[row], int)]
        if drawn:
            uniforms = self._uniforms([sequences[row] for row in drawn])
            some = ROWS if scores.device.type == "cpu" else len(drawn)
            for start in range(0, len(drawn), some):
                rows = drawn[start : start + some]
                weights = draw_weights(scores[rows], [params[row] for row in rows])
                for row, token in zip(rows, _draw(weights, uniforms[start : start + some]), strict=True):
                    chosen[row] = token
        return chosen

    def _uniforms(self, sequences: Sequence[Running]) -> NDArray[np.float64]:
        """A number in [0, 1) for each: SplitMix64 (Steele et al., 2014) as a function of seed and position.

        Without a seed the sequence's number, which no other one in this process has, and this sampler's own entropy
        stand in for it.
        """
        seeds = [
            self._entropy + s.number if s.request.params.seed is None else s.request.params.seed for s in sequences
        ]
        keys = _mixed(np.array([seed % 2**64 for seed in seeds], dtype=np.uint64))
        positions = np.array([len(s.tokens) + 1 for s in sequences], dtype=np.uint64)
        bits = _mixed(keys + positions * GOLDEN)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _is_special(params: SamplingParams) -> bool:
    return bool(
        params.temperature > 0
        or params.logit_bias
        or params.repetition_penalty != 1
        or params.presence_penalty
        or params.frequency_penalty
    )


def _refusal(params: SamplingParams, mask: Mask, highest: float, width: int) -> Exception | None:
    if isinstance(mask, Exception):
        return mask
    if not math.isfinite(highest):
        return ModelUnavailable(
            f"The model computed {highest} where a logit should be.",
            hint="Its weights may be damaged, or too large for its number format: try float32.",
        )
    if mask is not None and mask.shape != (width,):
        return ValueError(f"The mask has shape {mask.shape}, the vocabulary {width} tokens.")
    unknown = [token for token in params.logit_bias if not 0 <= token < width]
    if unknown:
        return CallerError(
            f"logit_bias names token {unknown[0]}; this model has tokens 0 to {width - 1}.", field="logit_bias"
        )
    return None


def _nothing_left() -> CallerError:
    return CallerError("The constraint allows no token here.", field="response_format")


def _best(scores: torch.Tensor) -> tuple[list[float], list[int]]:
    """The highest value of each row and its id, the lowest among equal ones; NaN counts as the highest."""
    if scores.device.type == "cpu":  # numpy's is vectorized there, and takes a sixteenth of the time
        array = scores.numpy()
        ids = array.argmax(1)
        return array[np.arange(len(array)), ids].tolist(), ids.tolist()
    values, indices = scores.max(1)
    return values.tolist(), indices.tolist()


def _add_bias(scores: torch.Tensor, biases: Sequence[Mapping[int, float]]) -> None:
    width = scores.shape[1]
    given = [(row * width + token, value) for row, bias in enumerate(biases) for token, value in bias.items()]
    if given:
        places, values = zip(*given, strict=True)
        _change(scores, np.array(places), np.array(values), torch.add)


def _divide_repeated(scores: torch.Tensor, tokens: Sequence[Sequence[int]], penalties: Sequence[float]) -> None:
    if all(penalty == 1 for penalty in penalties):
        return
    width = scores.shape[1]
    places, _ = _occurrences([ids if p != 1 else () for ids, p in zip(tokens, penalties, strict=True)], width)
    factors = np.array(penalties)[places // width]
    _change(scores, places, factors, lambda old, by: torch.where(old > 0, old / by, old * by))


def _subtract_penalties(
    scores: torch.Tensor, generated: Sequence[Sequence[int]], params: Sequence[SamplingParams]
) -> None:
    wanted = [bool(p.presence_penalty or p.frequency_penalty) for p in params]
    if not any(wanted):
        return
    width = scores.shape[1]
    places, counts = _occurrences([ids if want else () for ids, want in zip(generated, wanted, strict=True)], width)
    row = places // width
    once = np.array([p.presence_penalty for p in params])[row]
    each = np.array([p.frequency_penalty for p in params])[row]
    _change(scores, places, once + each * counts, torch.sub)


def _occurrences(rows: Sequence[Sequence[int]], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places (row * width + id) of the ids that occur in each row, and how often each does."""
    places = [np.array(ids, dtype=np.int64) + row * width for row, ids in enumerate(rows)]
    return np.unique(np.concatenate(places), return_counts=True)


def _change(
    scores: torch.Tensor,
    places: NDArray[np.int64],
    values: NDArray[np.float64],
    change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """Change the scores at `places` of the flattened rows, each place once."""
    flat = scores.view(-1)
    at = torch.from_numpy(places).to(scores.device)
    flat[at] = change(flat[at], torch.from_numpy(values).to(scores.device, scores.dtype))


def _mask(scores: torch.Tensor, masks: Sequence[Mask]) -> None:
    rows = [row for row, mask in enumerate(masks) if mask is not None]
    if rows:
        allowed = torch.from_numpy(np.stack([np.asarray(masks[row]) for row in rows])).to(scores.device)
        scores[rows] = scores[rows].masked_fill(~allowed, -math.inf)


def draw_weights(scores: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """How probable each token is to be drawn, as integers: 0 for those that temperature, top-k, top-p, min-p leave out.

    Args:
        scores: shape (rows, vocabulary size), float32, as they are after the mask; not changed.

    Returns:
        int64 of that shape; the most probable token of each row has SCALE.
    """
    temperatures = _column(scores, [p.temperature for p in params], torch.float64)
    shifted = scores.double().sub_(scores.amax(1, keepdim=True))
    weights = shifted.div_(temperatures).exp_().mul_(SCALE).round_().long()
    _keep_most_probable(weights, params)
    if any(p.min_p for p in params):
        least = _column(weights, [math.ceil(p.min_p * SCALE) for p in params])
        weights.masked_fill_(weights < least, 0)
    return weights


def _draw(weights: torch.Tensor, uniforms: NDArray[np.float64]) -> list[int]:
    """A token of each row: the first one at which the weights so far exceed that share of all of them."""
    reached = weights.cumsum(1)
    mass = reached[:, -1:]
    target = (_column(weights, uniforms.tolist(), torch.float64) * mass.double()).long()
    # A product may be rounded up to the whole mass, which no token lies beyond.
    return torch.searchsorted(reached, torch.minimum(target, mass - 1), right=True)[:, 0].tolist()


def _keep_most_probable(weights: torch.Tensor, params: Sequence[SamplingParams]) -> None:
    """Apply top-k and top-p: the token that makes the mass reach top-p belongs to the set."""
    width = weights.shape[1]
    rows = [row for row, p in enumerate(params) if 0 < p.top_k < width or p.top_p < 1]
    if not rows:
        return
    chosen = weights[rows]
    most = _column(weights, [min(params[row].top_k or width, width) for row in rows])
    share = _column(weights, [params[row].top_p for row in rows], torch.float64)
    total = chosen.sum(1, keepdim=True)
    for size in dict.fromkeys((min(FEW, width), width)):  # the few best are nearly always enough
        ordered = _descending(chosen, size)
        reached = ordered.cumsum(1)
        mass = torch.where(most < width, reached.gather(1, most.clamp(max=size) - 1), total)
        needed = (share * mass.double()).ceil().long()
        within = (most <= size) | ((most == width) & (share < 1) & (reached[:, -1:] >= needed))
        if bool(within.all()):
            break
    smallest = (reached < needed).sum(1, keepdim=True) + 1
    counts = torch.where(share < 1, torch.minimum(smallest, most), most)
    weights[rows] = chosen.masked_fill_(~_first(chosen, ordered, counts), 0)


def _descending(values: torch.Tensor, size: int) -> torch.Tensor:
    """Each row's `size` highest values, the highest first."""
    if values.device.type == "cpu":  # numpy orders integers with vector instructions, fifteen times as fast
        array = values.numpy()
        best = array if size == array.shape[1] else np.partition(array, -size, axis=1)[:, -size:]
        return torch.from_numpy(np.sort(best, axis=1)[:, ::-1].copy())
    return values.topk(size, sorted=True).values


def _first(values: torch.Tensor, ordered: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mask of each row's `counts` (rows, 1) highest values, among equal ones those of the lowest ids.

    Args:
        ordered: at least that many of each row's values, the highest first.
    """
    border = ordered.gather(1, counts - 1)
    kept = values >= border
    if bool((kept.sum(1, keepdim=True) > counts).any()):
        equal = values == border
        room = counts - (values > border).sum(1, keepdim=True)
        kept &= ~equal | (equal.cumsum(1) <= room)
    return kept


def _column(like: torch.Tensor, values: Sequence[float], dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Shape (rows, 1), on the device of `like`."""
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]


def _accepted(sequence: Running, token: int | Exception, logits: torch.Tensor) -> int | Exception:
    provider = sequence.request.mask
    if provider is None or isinstance(token, Exception):
        return token
    try:
        return provider.accept(token, lambda: logits.cpu().numpy())
    except Exception as error:  # noqa: BLE001  a grammar's fault ends its own request, never the batch
        return error


def _reported(
    logits: torch.Tensor, params: Sequence[SamplingParams], chosen: Sequence[int | Exception]
) -> list[Sampled]:
    """The tokens, with log-probabilities by the logits as they came where they are asked for."""
    results = [SampledToken(token) if isinstance(token, int) else token for token in chosen]
    asked = [
        (row, token, count)
        for row, token in enumerate(chosen)
        if isinstance(token, int) and (count := params[row].logprobs) is not None
    ]
    if not asked:
        return results
    raw = logits[[row for row, _, _ in asked]]
    values = raw.log_softmax(1, dtype=torch.float64)
    own = values.gather(1, _column(values, [token for _, token, _ in asked]))[:, 0].tolist()
    best = _alternatives(raw, values, min(max(count for _, _, count in asked), raw.shape[1]))
    for (row, token, count), value, top in zip(asked, own, best, strict=True):
        results[row] = SampledToken(token, value, tuple(top[:count]))
    return results


def _alternatives(raw: torch.Tensor, values: torch.Tensor, count: int) -> list[list[tuple[int, float]]]:
    """The `count` best of each row with their values, best first, equal ones by id."""
    if count == 0:
        return [[] for _ in raw]
    counts = _column(raw, [count] * len(raw))
    ids = _first(raw, raw.topk(count).values, counts).nonzero()[:, 1].view(len(raw), count)
    found = zip(ids.tolist(), values.gather(1, ids).tolist(), strict=True)
    return [sorted(zip(*pair, strict=True), key=lambda item: (-item[1], item[0])) for pair in found]
