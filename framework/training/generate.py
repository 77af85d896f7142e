"""Questions and answers from passages, by a model or by rule, checked one by one; what was dropped is counted.

A model is asked for questions with answers in the passage's own words. What passes the rules of `asked.py` is read
again, by the same model in the form that readers are asked in: a question stays when it gets the same answer, and one
that the passage does not answer stays when it is declined. Each passage's outcome is stored when it is known, so that a
run that was killed goes on where it was.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from framework.documents import content_hash
from framework.errors import CallerError, ModelUnavailable
from framework.messages import Completion, Message, canonical_json, system, user
from framework.models.base import ChatModel, Constraint, GenerationParams, JsonSchema, complete
from framework.prompts.reading import Style, reading_messages
from framework.training.asked import (
    Item,
    Trace,
    chat_rows,
    declined,
    fault,
    find_span,
    pair_row,
    same_answer,
    trace_row,
)
from framework.training.by_rule import items_of
from framework.training.journal import Journal
from framework.training.passages import Passage
from framework.training.row_parts import normal, words
from framework.training.rows import Provenance, Row

VERSION = 1  # of prompt and rules: a journal of another version is not continued
RULES = "lectern-rules"
READ_TOKENS, WRITE_TOKENS = 64, 1500
TRIES = 3
TRIED = 50  # questions of other documents, of which one is asked of the wrong passage
ASK = (
    "You write questions for people who look things up. From the passage write {questions} questions that it answers, "
    "{follow_ups} follow-ups and {unanswerable} questions on the same subject that it does not answer.\n"
    "A question is asked as someone would who has not seen the passage, in other words than the passage's. `answer` is "
    "copied from the passage letter by letter, as few words as will do. `sentence` answers in a full sentence. A "
    "follow-up is understood only after the question with the index `after`; `standalone` says it so that it can be "
    "asked alone."
)
_TEXT = {"type": "string"}
_ANSWERED = {"question": _TEXT, "answer": _TEXT, "sentence": _TEXT}
Progress: TypeAlias = Callable[[int, int, int, int], None]  # passages done and in all, items kept and dropped


def _list_of(properties: Mapping[str, Any]) -> dict[str, Any]:
    item = {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "array", "items": item}


SCHEMA = JsonSchema(
    {
        "type": "object",
        "properties": {
            "questions": _list_of(_ANSWERED),
            "follow_ups": _list_of({"after": {"type": "integer"}, "standalone": _TEXT, **_ANSWERED}),
            "unanswerable": {"type": "array", "items": _TEXT},
        },
        "required": ["questions", "follow_ups", "unanswerable"],
        "additionalProperties": False,
    }
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is made of each passage.

    Attributes:
        questions, follow_ups, unanswerable: asked of the model, a passage.
        concurrency: passages that are worked on at once.
        temperature: of writing; reading again is greedy.
    """

    questions: int = 4
    follow_ups: int = 1
    unanswerable: int = 1
    concurrency: int = 4
    temperature: float = 0.7
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Made:
    """The items of each passage, in the passages' order, and how many were dropped for which reason."""

    items: tuple[tuple[Passage, tuple[Item, ...]], ...]
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(len(items) for _, items in self.items)


async def generate(
    passages: Sequence[Passage],
    model: ChatModel | None,
    journal: Path,
    plan: Plan = Plan(),
    *,
    digest: str = "",
    progress: Progress = lambda *_: None,
) -> Made:
    """Items for all passages; what `journal` holds already is not made again.

    Args:
        model: None makes them by rule.
        digest: tells the model's weights from others of the same name.

    Raises:
        CallerError: there are no passages, or the journal is of another model or plan.
        ModelUnavailable: the model can't be reached; calling again goes on.
    """
    if not passages:
        raise CallerError("There is no passage to ask about.", hint="A passage has 25 words at least.")
    unique = {passage.key: passage for passage in passages}
    with Journal(journal, _identity(model, digest, plan)) as done:
        state = Counter[str]()

        def tell(entry: Mapping[str, Any]) -> None:
            state.update(done=1, kept=len(entry["items"]), lost=sum(entry["dropped"].values()))
            progress(state["done"], len(unique), state["kept"], state["lost"])

        for key in unique.keys() & done.entries.keys():
            tell(done.entries[key])
        turn = asyncio.Semaphore(plan.concurrency)

        async def work(passage: Passage) -> None:
            async with turn:
                if model is None:
                    items, dropped = _by_rule(passage, _others(passage, passages, plan.seed), plan)
                else:
                    items, dropped = await _by_model(passage, model, plan)
            entry = {"items": [asdict(item) for item in items], "dropped": dict(+dropped)}
            done.add(passage.key, entry)
            tell(entry)

        await _all(work(passage) for key, passage in unique.items() if key not in done.entries)
        entries = [(passage, done.entries[key]) for key, passage in unique.items()]
    total: Counter[str] = Counter({"passage given twice": len(passages) - len(unique)})
    for _, entry in entries:
        total.update(entry["dropped"])
    items = tuple((passage, tuple(_item(value) for value in entry["items"])) for passage, entry in entries)
    return Made(items, {reason: count for reason, count in total.most_common() if count})


def _identity(model: ChatModel | None, digest: str, plan: Plan) -> str:
    """What must be the same for a run to go on; how much is done at once need not."""
    settings = {**asdict(plan), "concurrency": 0}
    return content_hash(str(VERSION), model.name if model else RULES, digest, canonical_json(settings))


async def _all(tasks: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Side by side; the first error ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def rows_of(made: Made, provenance: Provenance, *, trace: Trace | None = None, seed: int = 0) -> list[Row]:
    """Chat rows of everything that was made, and of questions asked of the wrong passage, which has no answer.

    With `trace`, also each item as an agent that searches answers it.
    """
    passages = [passage for passage, _ in made.items]
    answered = [(passage, item) for passage, items in made.items for item in items if item.kind == "answer"]
    rows: list[Row] = []
    for passage, items in made.items:
        stranger = _stranger(passage, answered, seed)
        for item in (*items, *([stranger] if stranger else ())):
            rows += chat_rows(item, passage, provenance)
            if trace is not None:
                row = trace_row(item, passage, _others(passage, passages, seed, 2), provenance, trace)
                rows += [row] if row is not None else []
    return rows


def pairs_of(made: Made, provenance: Provenance) -> list[Row]:
    """Pair rows: each question that is understood alone, with the passage that answers it."""
    pairs = [pair_row(item, passage, provenance) for passage, items in made.items for item in items]
    return [pair for pair in pairs if pair is not None]


def _by_rule(passage: Passage, others: Sequence[Passage], plan: Plan) -> tuple[list[Item], Counter[str]]:
    items = items_of(passage, others, plan.seed)
    return items, Counter() if items else Counter({"passage with nothing to ask by rule": 1})


async def _by_model(passage: Passage, model: ChatModel, plan: Plan) -> tuple[list[Item], Counter[str]]:
    dropped: Counter[str] = Counter()
    wanted = {"questions": plan.questions, "follow_ups": plan.follow_ups, "unanswerable": plan.unanswerable}
    head = f"{passage.heading}\n" if passage.heading else ""
    prompt = [system(ASK.format(**wanted)), user(f"Passage: {head}{passage.text}")]
    params = GenerationParams(WRITE_TOKENS, plan.temperature, seed=int(passage.key[:8], 16) ^ plan.seed)
    written, problem = await _ask(model, prompt, params, SCHEMA)
    if written is None:
        return [], Counter({problem: 1})
    found = _read(written.message.content)
    if found is None:
        return [], Counter({"reply cut off" if written.finish_reason == "length" else "reply is no such JSON": 1})
    items, seen = [], set[str]()
    for item in _candidates(found, passage, dropped):
        reason = "repeated question" if normal(item.question) in seen else await _read_again(item, passage, model)
        seen.add(normal(item.question))
        if reason:
            dropped[reason] += 1
        else:
            items.append(item)
    return items, dropped


async def _ask(
    model: ChatModel, messages: Sequence[Message], params: GenerationParams, constraint: Constraint | None = None
) -> tuple[Completion | None, str]:
    """The reply, or None and why there is none for this passage.

    Raises:
        ModelUnavailable: the model does not even answer a greeting.
    """
    for attempt in range(TRIES):
        try:
            again = replace(params, seed=None if params.seed is None else params.seed + attempt)
            return await complete(model, messages, constraint=constraint, params=again), ""
        except CallerError as error:  # too long for its context, or refused by its filter; others may not be
            return None, f"model refused: {error.code}"
        except ModelUnavailable:  # gone, or a reply that breaks its schema
            continue
    await complete(model, [user("Hello")], params=GenerationParams(1))
    return None, f"model failed {TRIES} times"


def _read(text: str) -> dict[str, Any] | None:
    """The reply as JSON; a server that can't be held to a schema may put words or a fence around it."""
    start, end = text.find("{"), text.rfind("}")
    try:
        value = json.loads(text[start : end + 1])
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _candidates(found: Mapping[str, Any], passage: Passage, dropped: Counter[str]) -> list[Item]:
    """What passes the rules that need no model."""
    items: list[Item] = []
    first: list[Item | None] = []
    for value in _objects(found.get("questions"), dropped):
        item = _answered(value, passage, dropped)
        first.append(item)
        items += [item] if item else []
    for value in _objects(found.get("follow_ups"), dropped):
        after = value.get("after")
        base = first[after] if isinstance(after, int) and 0 <= after < len(first) else None
        if base is None:
            dropped["follow-up of nothing"] += 1
            continue
        item = _answered(value, passage, dropped, base)
        items += [item] if item else []
    questions = found.get("unanswerable")
    for question in questions if isinstance(questions, list) else ():
        reason = fault(question, "", passage) if isinstance(question, str) else "reply is no such JSON"
        if reason:
            dropped[reason] += 1
        else:
            items.append(Item("unanswerable", " ".join(question.split())))
    return items


def _answered(
    value: Mapping[str, Any], passage: Passage, dropped: Counter[str], base: Item | None = None
) -> Item | None:
    question, answer, sentence, alone = (
        " ".join(str(value.get(key) or "").split()) for key in ("question", "answer", "sentence", "standalone")
    )
    span = find_span(passage.text, answer)
    reason = "answer is not in the passage" if span is None else fault(alone or question, span[0], passage)
    if base is not None and (not alone or normal(alone) == normal(question)):
        reason = "follow-up that is none"
    if reason or span is None:
        dropped[reason] += 1
        return None
    if sentence and normal(span[0]) not in normal(sentence):
        dropped["sentence without the answer (its brief form stays)"] += 1
        sentence = ""
    if base is None:
        return Item("answer", question, span[0], span[1], sentence)
    return Item("follow_up", question, span[0], span[1], sentence, (base.question, base.short), alone)


async def _read_again(item: Item, passage: Passage, model: ChatModel) -> str:
    """Why the item is not taken, or nothing: whether a reader of the passage gives the same answer."""
    messages = reading_messages(item.question, passage.text, passage.heading, Style.BRIEF, item.before)
    completion, problem = await _ask(model, messages, GenerationParams(READ_TOKENS))
    if completion is None:
        return problem
    reply = completion.message.content
    if item.kind == "unanswerable":
        return "" if declined(reply) else "unanswerable question was answered"
    if declined(reply):
        return "read again, the passage has no answer"
    return "" if same_answer(item.short, reply) else "read again, the answer is another"


def _objects(value: Any, dropped: Counter[str]) -> list[dict[str, Any]]:
    given = value if isinstance(value, list) else []
    found = [item for item in given if isinstance(item, dict)]
    dropped["reply is no such JSON"] += len(given) - len(found)
    return found


def _item(value: Mapping[str, Any]) -> Item:
    before = value["before"]
    return Item(**{**value, "before": (before[0], before[1]) if before else None})


def _stranger(passage: Passage, answered: Sequence[tuple[Passage, Item]], seed: int) -> Item | None:
    """Of some questions of other documents the one that looks most as if this passage answered it."""
    dice = random.Random(f"{seed} stranger {passage.key}")
    read, text = set(words(passage.text)), f" {normal(passage.text)} "
    tried = dice.sample(answered, min(len(answered), TRIED))
    fitting = [
        (len(read & set(words(item.question))) / len(words(item.question)), item.question)
        for other, item in tried
        if other.document != passage.document and f" {normal(item.short)} " not in text
    ]
    return Item("wrong passage", max(fitting)[1]) if fitting else None


def _others(passage: Passage, passages: Sequence[Passage], seed: int, count: int = 3) -> list[Passage]:
    """Some passages of other documents, always the same for the same passages and seed."""
    dice = random.Random(f"{seed} others {passage.key}")
    tried = dice.sample(range(len(passages)), min(len(passages), 8 * count))
    return [passages[place] for place in tried if passages[place].document != passage.document][:count]
