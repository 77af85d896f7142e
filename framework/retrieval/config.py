"""Section `[search]` of lectern.toml. Imports nothing heavy: every command reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from framework.errors import ConfigError

Mode: TypeAlias = Literal["hybrid", "dense", "lexical"]
Fusion: TypeAlias = Literal["dbsf", "rrf"]
MODES: tuple[Mode, ...] = ("hybrid", "dense", "lexical")
MAX_K = 1000


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """How a search ranks, where the call does not say otherwise.

    Attributes:
        mode: "hybrid" fuses both rankings, "dense" and "lexical" use one.
        k: hits to return.
        pool: candidates that each ranking contributes before fusion; grows with k, with `rerank_candidates`, and when
            candidates turn out stale.
        fusion: "dbsf" adds scores, each ranking's scaled by its distribution; "rrf" adds reciprocal ranks.
        rrf_k: the constant of reciprocal rank fusion; larger flattens the difference between ranks.
        dense_weight, lexical_weight: each ranking's share in the fusion.
        rerank: let a model read the best candidates together with the query and order them anew.
        rerank_candidates: how many of them; the others stay behind, in their order.
        first_stage_weight: the share of the ranking before in the order afterwards, from 0 to 1.
        mmr: maximal marginal relevance, from 0 (diverse) to 1 (relevant); None leaves the ranking as it is.

    Raises:
        ConfigError: a value out of range.
    """

    mode: Mode = "hybrid"
    k: int = 8
    pool: int = 100
    fusion: Fusion = "dbsf"
    rrf_k: float = 60.0
    dense_weight: float = 1.0
    lexical_weight: float = 1.0
    rerank: bool = False
    rerank_candidates: int = 20
    first_stage_weight: float = 0.2
    mmr: float | None = None

    def __post_init__(self) -> None:
        _require(self.mode in MODES, "mode", self.mode, f"one of {', '.join(MODES)}")
        _require(self.fusion in ("dbsf", "rrf"), "fusion", self.fusion, "dbsf or rrf")
        _require(1 <= self.k <= MAX_K, "k", self.k, f"between 1 and {MAX_K}")
        _require(1 <= self.pool <= 10_000, "pool", self.pool, "between 1 and 10,000")
        _require(math.isfinite(self.rrf_k) and self.rrf_k > 0, "rrf_k", self.rrf_k, "above 0")
        for name in ("dense_weight", "lexical_weight"):
            weight = getattr(self, name)
            _require(math.isfinite(weight) and weight >= 0, name, weight, "0 or more")
        _require(self.dense_weight + self.lexical_weight > 0, "dense_weight", 0, "above 0 when lexical_weight is 0")
        _require(1 <= self.rerank_candidates <= MAX_K, "rerank_candidates", self.rerank_candidates, f"1 to {MAX_K}")
        _require(0 <= self.first_stage_weight <= 1, "first_stage_weight", self.first_stage_weight, "between 0 and 1")
        _require(self.mmr is None or 0 <= self.mmr <= 1, "mmr", self.mmr, "between 0 and 1")


def _require(valid: bool, name: str, value: object, range_: str) -> None:
    if not valid:
        raise ConfigError(f"search.{name} must be {range_}, got {value!r}.", field=f"search.{name}")
