"""From documents on this machine to a file of rows: what `lectern dataset generate` does."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from framework.bridge import run_sync
from framework.config import Settings
from framework.documents import Document, content_hash
from framework.errors import CallerError
from framework.models.base import ChatModel
from framework.models.config import ModelsConfig
from framework.training.cleaning import deduplicate
from framework.training.datasets import write_rows
from framework.training.generate import RULES, VERSION, Plan, Progress, generate, pairs_of, rows_of
from framework.training.passages import all_passages
from framework.training.rows import Provenance


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made; the options of the command."""

    paths: tuple[Path, ...]
    collection: str | None
    out: Path
    licence: str
    model: str | None = None
    by_rule: bool = False
    kind: Literal["chat", "pair"] = "chat"
    traces: bool = False
    questions: int = 4
    limit: int | None = None
    concurrency: int = 4
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many rows were written, and how much was dropped for which reason."""

    rows: int
    dropped: Mapping[str, int]


def make(order: Order, say: Callable[[str], None]) -> Outcome:
    """Make the rows and write them. What is done is kept beside the file until all of it is.

    Raises:
        CallerError: neither paths nor a collection, both, or nothing that can be asked about.
        ModelUnavailable: the model can't be reached; calling again goes on.
    """
    if bool(order.paths) == bool(order.collection):
        raise CallerError("Name files or folders, or a collection.", field="collection")
    if order.by_rule and order.kind == "pair":
        raise CallerError("Rules make no questions for pairs.", hint="Leave out --by-rule, or take --kind chat.")
    settings = Settings.load()
    unreadable: dict[str, str] = {}
    passages = list(all_passages(_documents(order, settings, unreadable)))
    for name, reason in unreadable.items():
        say(f"{name} was left out: {reason}")
    if order.limit is not None:
        passages = random.Random(order.seed).sample(passages, min(order.limit, len(passages)))
    model, digest = (None, str(VERSION)) if order.by_rule else _model(order.model, settings)
    plan = Plan(questions=order.questions, concurrency=order.concurrency, seed=order.seed)
    journal = order.out.with_name(f"{order.out.name}.journal")
    with _shown(say) as progress:
        made = run_sync(generate(passages, model, journal, plan, digest=digest, progress=progress))
    origin = f"collection {order.collection}" if order.collection else ", ".join(path.name for path in order.paths)
    details = {"model": model.name if model else RULES, "model_digest": digest}
    provenance = Provenance(origin, order.licence, True, details)
    if order.kind == "pair":
        rows = pairs_of(made, provenance)
    else:
        from agents.search_traces import search_trace

        rows = rows_of(made, provenance, trace=search_trace if order.traces else None, seed=order.seed)
    clean = deduplicate(rows)
    dropped = {**made.dropped, "rows like another": len(clean.repetitions)}
    if unreadable:
        dropped["document that can't be read"] = len(unreadable)
    if not clean.rows:
        raise CallerError(
            f"Nothing was left of {len(passages)} passages: "
            + "; ".join(f"{count} x {reason}" for reason, count in dropped.items() if count),
            hint="Take a larger model (--model), or --by-rule.",
        )
    written = write_rows(order.out, clean.rows)
    journal.unlink()
    return Outcome(written, dropped)


def _documents(order: Order, settings: Settings, unreadable: dict[str, str]) -> Iterator[Document]:
    from indexers.config import IndexConfig
    from indexers.library import open_library
    from indexers.sources import read_sources

    if order.collection:
        with open_library(settings) as library:
            for info in library.documents(order.collection):
                yield library.corpus.document(library.tenant, order.collection, info.document_id, info.version)
        return
    for found in read_sources(order.paths, settings.section("index", IndexConfig)):
        if isinstance(found, Document):
            yield found
        else:
            unreadable[found.document_id] = found.reason


def _model(name: str | None, settings: Settings) -> tuple[ChatModel, str]:
    """The model, and what tells its weights from others: a hash of them, or of where the server is."""
    from framework.models.chat import load_chat

    config = settings.section("models", ModelsConfig)
    model = load_chat(name, config, settings=settings)
    wanted = name or config.chat
    if wanted in config.endpoints:
        endpoint = config.endpoints[wanted]
        return model, content_hash("endpoint", endpoint.base_url, endpoint.model)
    from framework.models.local_chat import LocalChat

    if not isinstance(model, LocalChat):
        return model, content_hash("provider", wanted)
    from framework.models.adapters import AdapterStore, base_id, split_name
    from framework.models.catalog import Catalog
    from framework.models.digests import file_digest

    catalog = Catalog(config)
    base, adapter = split_name(wanted)
    resolved = catalog.resolve(base)
    digests = [file_digest(file, catalog.cache) for file in sorted(resolved.path.glob("*.safetensors"))]
    if adapter:
        digests.append(AdapterStore.open(settings).get(adapter, settings.core.tenant, base_id(resolved.card)).digest)
    return model, content_hash("" if not adapter else "adapter", *digests)


@contextmanager
def _shown(say: Callable[[str], None]) -> Iterator[Progress]:
    """A bar with the time left on a terminal; elsewhere a line every tenth of the way."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress as Bar

        with Bar(console=Console(stderr=True)) as bar:
            row = bar.add_task("passages", total=None)
            yield lambda done, total, kept, lost: bar.update(
                row, completed=done, total=total, description=f"passages ({kept} kept, {lost} dropped)"
            )
        return
    told = 0

    def tell(done: int, total: int, kept: int, lost: int) -> None:
        nonlocal told
        if done * 10 // total > told:
            told = done * 10 // total
            say(f"{done} of {total} passages: {kept} kept, {lost} dropped")

    yield tell
