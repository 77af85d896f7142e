"""A grammar's walk beside one answer, as the engine wants it: masks before, the token after, and an end in time."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from framework.models.constraints import Matcher


class GrammarMask:
    """A `MaskProvider` of the engine over a `Matcher`. Near the end of the budget the grammar's open JSON is closed.

    Args:
        matcher: what the grammar allows.
        budget: most tokens of the answer.
        ends: ids that end an answer.
        forces: tokens that the grammar leaves no choice about are given without asking the model; not where the
            caller wants to know their log-probabilities.

    Attributes:
        left: tokens of the budget that are left.
        cut: the budget, not the model, ended something.
        ended: the model ended its answer.

    Raises:
        CallerError: the grammar is too complex. The first mask, mostly the costliest, is computed here, so that a
            dangerous one takes the time of whoever asks and not that of a batch.
    """

    def __init__(self, matcher: Matcher, budget: int, ends: Collection[int], forces: bool = True) -> None:
        self.matcher = matcher
        self.left = budget
        self.ends = ends
        self.forces = forces
        self.cut = False
        self.ended = False
        self._half = budget // 2  # more is never kept back for closing, or small budgets would write nothing
        self._allowed: NDArray[np.bool_] | None = None
        self.allowed()

    @property
    def finished(self) -> bool:
        """Nothing follows, by the model's choice or because the grammar allows nothing."""
        return self.ended or self.matcher.finished

    def allowed(self) -> NDArray[np.bool_]:
        if self._allowed is None:
            self._allowed = self.matcher.allowed()
        return self._allowed

    def accept(self, token: int, logits: Callable[[], NDArray[np.float32]]) -> int:
        """Take the token, or where the budget nears its end the most probable one that closes what is open."""
        nested = self.matcher.nested  # what the answer itself has opened has to be closed, whatever the budget
        if self.left <= min(self.matcher.needed - nested, self._half) + nested:
            closing = self.matcher.vocabulary.closing(self.allowed())
            if not closing[token]:
                token, self.cut = int(np.argmax(np.where(closing, logits(), -np.inf))), True
        self._take(token)
        return token

    def forced(self) -> list[int]:
        """Tokens that the grammar leaves no choice about, taken; one of the budget is left for the model."""
        tokens = self.matcher.forced()[: max(self.left - 1, 0)] if self.forces and not self.finished else []
        for token in tokens:
            self._take(token)
        return tokens

    def _take(self, token: int) -> None:
        self.left -= 1
        self._allowed = None
        self.ended = token in self.ends
        if not self.ended:
            self.matcher.consume(token)
