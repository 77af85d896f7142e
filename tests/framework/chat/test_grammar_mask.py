"""A grammar in front of the engine's sampler: random logits stand in for the model."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import validate

from framework.engine.masks import MaskWorkers
from framework.engine.sampler import Sampler
from framework.engine.sequence import Request, SampledToken, SamplingParams, Sequence
from framework.messages import ToolSpec
from framework.models.base import REQUIRED, Choice, JsonSchema, Regex
from framework.models.constraints import Grammar, Vocabulary, constraint_grammar, tool_grammar
from framework.models.grammar_mask import GrammarMask

END = 1
SCHEMA = {
    "type": "object",
    "properties": {"query": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
    "required": ["query", "days"],
    "additionalProperties": False,
}
GRAMMARS = {
    "schema": constraint_grammar(JsonSchema(SCHEMA)),
    "pattern": constraint_grammar(Regex("[a-c]{2,40}(true|false)")),
    "choice": constraint_grammar(Choice(("the weather", "the search", "null"))),
    "call": tool_grammar([ToolSpec("search", "Find.", SCHEMA)], REQUIRED),
}


def logits_of(vocabulary: Vocabulary, seed: int, position: int) -> torch.Tensor:
    """Of a model that never wants to end."""
    row = np.random.default_rng((seed, position)).standard_normal(vocabulary.size).astype(np.float32)
    row[END] = -20.0
    return torch.from_numpy(row)


def written(vocabulary: Vocabulary, grammar: Grammar, budget: int, model: int, **given: Any) -> tuple[list[int], bool]:
    """What the engine's loop gives: forced tokens, masks, choices; and whether the budget cut something."""
    mask = GrammarMask(vocabulary.matcher(grammar), budget, [END])
    running = Sequence(Request((0,), SamplingParams(budget, stop_ids=frozenset([END]), **given), mask))
    sampler, workers = Sampler(), MaskWorkers(1)
    running.tokens += mask.forced()
    while running.generated < budget and not mask.finished:
        logits = logits_of(vocabulary, model, running.generated)[None]
        sampled = sampler.sample(logits, [running], workers.compute([running]).result())[0]
        assert isinstance(sampled, SampledToken)
        running.tokens += [sampled.token, *mask.forced()]
    workers.close()
    assert mask.left == budget - running.generated
    return running.tokens[1:], mask.cut


def written_plainly(vocabulary: Vocabulary, grammar: Grammar, budget: int, seed: int) -> list[int]:
    """The same greedily, with nothing between the grammar's walk and the logits."""
    walk, tokens = vocabulary.matcher(grammar), []

    def take(token: int) -> None:
        tokens.append(token)
        if token != END:
            walk.consume(token)

    def force() -> None:
        for token in walk.forced()[: max(budget - len(tokens) - 1, 0)]:
            take(token)

    force()
    while len(tokens) < budget and not walk.finished and tokens[-1:] != [END]:
        logits = logits_of(vocabulary, seed, len(tokens)).numpy()
        allowed = walk.allowed()
        wanted = allowed
        if budget - len(tokens) <= min(walk.needed - walk.nested, budget // 2) + walk.nested:
            wanted = vocabulary.closing(allowed)
        take(int(np.argmax(np.where(wanted, logits, -np.inf))))
        if tokens[-1] != END and not walk.finished:
            force()
    return tokens


def text_of(vocabulary: Vocabulary, tokens: list[int]) -> str:
    return b"".join(vocabulary.token_bytes(token) for token in tokens if token != END).decode()


@pytest.mark.parametrize("name", GRAMMARS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.integers(2, 200))
def test_the_engine_writes_what_the_grammar_and_the_logits_say(
    vocabulary: Vocabulary, name: str, seed: int, budget: int
) -> None:
    grammar = GRAMMARS[name]
    assert grammar is not None
    tokens, _ = written(vocabulary, grammar, budget, seed)
    assert tokens == written_plainly(vocabulary, grammar, budget, seed)


@pytest.mark.parametrize("given", [{}, {"temperature": 1.5, "seed": 3}, {"frequency_penalty": 2.0}])
def test_what_a_random_model_writes_is_valid_and_closed_in_time(vocabulary: Vocabulary, given: dict[str, Any]) -> None:
    grammar = constraint_grammar(JsonSchema(SCHEMA))
    cuts = []
    for model in range(12):
        tokens, cut = written(vocabulary, grammar, 130, model, **given)
        validate(json.loads(text_of(vocabulary, tokens)), SCHEMA)
        assert len(tokens) <= 130
        cuts.append(cut)
    assert set(cuts) == {True, False}, "some end by themselves and some are closed"


def test_a_choice_is_one_of_its_options_and_needs_no_model_once_it_is_clear(vocabulary: Vocabulary) -> None:
    grammar = constraint_grammar(Choice(("the weather", "the search", "null")))
    answers = {text_of(vocabulary, written(vocabulary, grammar, 60, model)[0]) for model in range(12)}
    assert answers <= {"the weather", "the search", "null"}
    assert len(answers) > 1


def test_tokens_are_forced_only_where_the_caller_does_not_want_their_probabilities(vocabulary: Vocabulary) -> None:
    grammar = constraint_grammar(Choice(("the weather",)))
    forced = GrammarMask(vocabulary.matcher(grammar), 60, [END]).forced()
    assert text_of(vocabulary, forced) == "the weather"
    assert GrammarMask(vocabulary.matcher(grammar), 60, [END], forces=False).forced() == []
    short = GrammarMask(vocabulary.matcher(grammar), 2, [END])
    assert (len(short.forced()), short.left, short.forced()) == (1, 1, [])


def test_an_answer_that_ended_forces_nothing(vocabulary: Vocabulary) -> None:
    mask = GrammarMask(vocabulary.matcher(constraint_grammar(Regex("a*"))), 60, [END])
    assert mask.allowed()[END]
    assert mask.accept(END, lambda: np.zeros(vocabulary.size, dtype=np.float32)) == END
    assert mask.finished
    assert mask.ended
    assert not mask.cut
    assert mask.forced() == []
