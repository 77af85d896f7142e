"""Fit the weights of agents/config.py's ReadingConfig on development sets, or report how they do on other sets.

    LECTERN_DATA=../shared/data python -m bench.reading_tune fit --home /tmp/reading
    LECTERN_DATA=../shared/data python -m bench.reading_tune report --home /tmp/reading [--model NAME] [--most 100]

`--home` keeps the index and what was read, so that a second run with the same model reads nothing again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from agents.config import QuotingConfig, ReadingConfig
from agents.quoting import quote
from agents.reading import SPEAKING, Part, Read, agreeing, heading, judge, parts, read_part, speaking
from bench.quoting_tune import Remembering, data_folder, least
from bench.reading_data import Question, Task, reporting, tuning, without_gold
from evals.identity import adapter_of
from evals.metrics.answers import token_f1, tokens
from framework.config import Settings
from framework.documents import Hit, content_hash
from framework.messages import Usage
from framework.models.base import ChatModel, in_role
from framework.models.chat import load_chat
from framework.retrieval.filters import In, Not
from indexers.library import Library

Matrix = NDArray[np.float64]
AT_ONCE = 8  # questions
DECLINED = 0.7  # share of the questions without an answer
MISMATCHED = 3  # every third question is asked once more with its documents out of reach


@dataclass(frozen=True, slots=True)
class Case:
    """One question, what each found passage says to it, what speaks for each answer, and the quoting's confidence."""

    question: Question
    reads: list[Read]
    rows: Matrix
    quoted: float

    @property
    def answers(self) -> list[Read]:
        return [each for each in self.reads if each.text]

    @property
    def right(self) -> NDArray[np.bool_]:
        return np.array([self.accepts(each) for each in self.answers], dtype=np.bool_)

    def accepts(self, each: Read) -> bool:
        return self.question.accepts(each.text, each.part.hit.chunk.document_id)


class Remembered:
    """What a model has read before, in a file."""

    def __init__(self, model: ChatModel, identity: str, folder: Path) -> None:
        self.model = model
        self._identity = identity
        self._file = folder / "reads.jsonl"
        self._known: dict[str, dict[str, float | str]] = {}
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                self._known.update(json.loads(line))

    async def read(self, question: Question, part: Part) -> Read:
        doubt = str(ReadingConfig().doubt)
        key = content_hash(self._identity, doubt, question.text, str(question.before), heading(part.hit), part.text)
        if key not in self._known:
            done = await read_part(question.text, part, self.model, question.before, ReadingConfig().doubt)
            self._known[key] = {"text": done.text, "odds": done.odds, "sure": done.sure}
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({key: self._known[key]}, ensure_ascii=False) + "\n")
        known = self._known[key]
        return Read(question.text, part, str(known["text"]), float(known["odds"]), float(known["sure"]), Usage())


async def cases(task: Task, library: Library, remembered: Remembered, most: int, mismatched: bool) -> list[Case]:
    """Each question searched and read; every third one, if asked for, once more with its documents out of reach."""
    library.index_documents(task.documents, task.name)
    asked = sampled(task.questions, most)
    if mismatched:
        asked += [without_gold(q) for q in [q for q in asked if q.gold][::MISMATCHED]]
    retriever, embedder = library.retriever(task.name), Remembering(library.embedder, library.home)
    config, gate, started = ReadingConfig(), asyncio.Semaphore(AT_ONCE), time.perf_counter()

    async def case(question: Question) -> Case:
        async with gate:
            out = Not(In("document_id", tuple(question.gold))) if question.group.endswith("mismatched") else None
            hits: Sequence[Hit] = (await retriever.search(question.query, k=config.passages, filter=out)).hits
            found = parts(question.text, hits, remembered.model, config, question.before)
            reads = await asyncio.gather(*[remembered.read(question, part) for part in found])
            quotation = await quote(question.query, hits, embedder, None, QuotingConfig())
            asked = f"{question.before[0]} {question.text}" if question.before else question.text
            rows = await asyncio.to_thread(speaking, asked, reads, embedder, config.language)
            return Case(question, list(reads), rows, quotation.confidence)

    done = list(await asyncio.gather(*[case(question) for question in asked]))
    embedder.save()
    print(f"{len(done)} questions read in {time.perf_counter() - started:.0f} s")
    return done


def sampled(questions: Sequence[Question], most: int) -> list[Question]:
    """At most so many of each group; those of a smaller sample are in every larger one."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.group, []).append(question)
    return [q for group in groups.values() for q in random.Random(0).sample(group, len(group))[:most]]


def fit_weights(chosen: Sequence[Case]) -> Matrix:
    """Logistic regression of "this answer is right" over all passages' answers; each question weighs the same."""
    used = [case for case in chosen if case.answers]
    rows = torch.tensor(np.concatenate([case.rows for case in used]))
    label = torch.tensor(np.concatenate([case.right for case in used]).astype(np.float64))
    share = torch.tensor(np.concatenate([np.full(len(c.answers), 1 / len(c.answers)) for c in used])) / len(used)

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(rows @ weights, label, share, reduction="sum")

    return least(loss, len(SPEAKING))


def configured(weights: Matrix, threshold: float = 0.0) -> ReadingConfig:
    values = dict(zip(SPEAKING, (float(w) for w in weights.round(2)), strict=True))
    return replace(ReadingConfig(), threshold=threshold, **values)


def fit_threshold(chosen: Sequence[Case], config: ReadingConfig) -> float:
    """The least confidence at which so many of the questions that nothing answers are declined."""
    judged = [judge(case.reads, case.rows, replace(config, threshold=0.0)).confidence for case in chosen]
    empty = np.array([c.question.group.endswith("mismatched") or not c.question.answers for c in chosen])
    steps = np.linspace(0.02, 0.98, 97)
    sure = np.array(judged)[empty]
    return round(float(next((step for step in steps if (sure < step).mean() >= DECLINED), steps[-1])), 2)


def figures(chosen: Sequence[Case], config: ReadingConfig) -> dict[str, float]:
    """How a set goes: answers that are right among all, how many are declined, F1 where the answers are short."""
    judged = [judge(case.reads, case.rows, config) for case in chosen]
    given = [(c, r.reads[0]) if not r.declined else (c, None) for c, r in zip(chosen, judged, strict=True)]
    short = [(c, best) for c, best in given if not c.question.long and c.question.answers]
    told = {
        "possible": float(np.mean([case.right.any() for case in chosen])),
        "best right": float(np.mean([_best_right(case, config) for case in chosen])),
        "answered rightly": float(np.mean([best is not None and c.accepts(best) for c, best in given])),
        "declined": float(np.mean([best is None for _, best in given])),
        "gold cited": float(
            np.mean([best.part.hit.chunk.document_id in c.question.gold for c, best in given if best] or [0])
        ),
    }
    if short:
        told["F1"] = float(np.mean([_f1(c.question, best.text) if best else 0.0 for c, best in short]))
    return told


def _f1(question: Question, said: str) -> float:
    return max(token_f1(tokens(said), tokens(answer)) for answer in question.answers)


def told(chosen: Sequence[Case], config: ReadingConfig) -> None:
    groups = dict.fromkeys(case.question.group for case in chosen)
    for group in groups:
        own = [case for case in chosen if case.question.group == group]
        print(f"  {group}: {len(own)}, " + ", ".join(f"{k} {v:.3f}" for k, v in figures(own, config).items()))


def fit(chosen: Sequence[Case]) -> None:
    """Print the values for ReadingConfig, how they do on each set when it is left out, and without each of them."""
    for group in ("own", "hotpot", "mtrag"):
        rest = [case for case in chosen if not case.question.group.startswith(group)]
        config = configured(fit_weights(rest))
        config = replace(config, threshold=fit_threshold(rest, config))
        print(f"{group} left out:")
        left_out = [case for case in chosen if case.question.group.startswith(group)]
        told(left_out, config)
        print(f"  area under the curve: {quality(left_out, config):.3f}")
    config = configured(fit_weights(chosen))
    config = replace(config, threshold=fit_threshold(chosen, config))
    print("ReadingConfig:", {name: value for name, value in asdict(config).items() if name in (*SPEAKING, "threshold")})
    told(chosen, config)
    everything = quality(chosen, config)
    print(f"area under the curve on what it was fitted on, right best answers against others: {everything:.3f}")
    for name in SPEAKING[1:]:
        without = fit_weights([_without(case, name) for case in chosen])
        one = configured(without * (np.array(SPEAKING) != name))
        print(f"  without {name}: {quality(chosen, one):.3f}, ", end="")
        print(f"best right {np.mean([_best_right(case, one) for case in chosen]):.3f}")
    direct = [_as_declined(case) for case in chosen]
    other = configured(fit_weights(direct))
    other = replace(other, threshold=fit_threshold(direct, other))
    print(f"never asked again in doubt: {quality(direct, other):.3f}")
    told(direct, other)
    print(f"  quoting's confidence alone: {quality(chosen, config, lambda case, _: case.quoted):.3f}")
    for weight in (0.25, 0.5, 1.0):
        print(f"  with quoting's log-odds at {weight}: {quality(chosen, config, _with_quoting(weight)):.3f}")


def _without(case: Case, name: str) -> Case:
    """For fitting with a weight held at nothing: its column says nothing."""
    rows = case.rows.copy()
    rows[:, SPEAKING.index(name)] = 0.0
    return replace(case, rows=rows)


def _as_declined(case: Case) -> Case:
    """About as read with `doubt` at 0: what the model finds likelier declined than answered has no answer."""
    reads = [replace(each, text="") if each.odds < 0 else each for each in case.reads]
    rows = case.rows[[each.odds >= 0 for each in case.answers]]
    answers = [each for each in reads if each.text]
    rows[:, SPEAKING.index("support")] = [math.log1p(agreeing(each, answers)) for each in answers]
    return replace(case, reads=reads, rows=rows)


def _confidence(case: Case, config: ReadingConfig) -> float:
    return judge(case.reads, case.rows, config).confidence


def _best_right(case: Case, config: ReadingConfig) -> bool:
    reading = judge(case.reads, case.rows, replace(config, threshold=0.0))
    return bool(reading.reads) and case.accepts(reading.reads[0])


def _logit(share: float) -> float:
    share = min(max(share, 1e-6), 1 - 1e-6)
    return float(np.log(share / (1 - share)))


def _with_quoting(weight: float) -> Callable[[Case, ReadingConfig], float]:
    return lambda case, config: _logit(_confidence(case, config)) + weight * _logit(case.quoted)


def quality(
    chosen: Sequence[Case], config: ReadingConfig, confidence: Callable[[Case, ReadingConfig], float] = _confidence
) -> float:
    """Probability that a case whose best answer is right has more confidence than one whose answer is not."""
    label = np.array([_best_right(case, config) for case in chosen])
    sure = np.array([confidence(case, config) for case in chosen])
    more = sure[label][:, None] > sure[~label][None, :]
    equal = sure[label][:, None] == sure[~label][None, :]
    return float((more + 0.5 * equal).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit or report reading.")
    parser.add_argument("command", choices=("fit", "report"))
    parser.add_argument("--home", type=Path, help="where index and reads are kept; a temporary folder if not given")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="the model that reads, with its reader if any")
    parser.add_argument("--adapter", type=Path, help="folder of an adapter to read with, in place of the model's own")
    parser.add_argument("--most", type=int, default=100, help="questions of each set")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = chosen.home or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        settings = Settings({"lectern": {"home": str(home)}}, base=home)
        model, identity = reader(chosen.model, chosen.adapter, settings)
        with Library.open(settings) as library:
            remembered = Remembered(model, identity, home)
            if chosen.command == "fit":
                fit(asyncio.run(cases(tuning(data_folder()), library, remembered, chosen.most, mismatched=True)))
            else:
                config = ReadingConfig()
                print({field.name: getattr(config, field.name) for field in fields(config)})
                told(asyncio.run(cases(reporting(data_folder()), library, remembered, chosen.most, False)), config)


def reader(name: str, adapter: Path | None, settings: Settings) -> tuple[ChatModel, str]:
    """What reads, and what tells its answers from another's."""
    if adapter is None:
        base = load_chat(name, settings=settings)
        return in_role(base, "reader") or base, str(adapter_of(name, settings))
    from framework.engine.lora import identify
    from framework.models.catalog import Catalog
    from framework.models.local_chat import LocalChat

    found = identify(adapter)
    resolved = Catalog().resolve(name)
    return LocalChat(resolved.path, f"{name}:reader", adapter=lambda: found), found.digest


if __name__ == "__main__":
    main()
