"""From a run folder to a live adapter: only what the parity gate lets through is registered as live."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.config import Settings
from framework.engine.lora import identify
from framework.errors import CallerError, Conflict, NotFound
from framework.models.adapters import AdapterStore, base_id, check_name
from framework.models.catalog import Catalog, Resolved
from framework.models.config import ModelsConfig
from framework.models.named_adapter import Checked, NamedAdapter
from framework.training.parity import ParityReport, check_parity
from framework.training.probes import REFERENCE, Probes, Reference

if TYPE_CHECKING:
    from framework.training.config import TrainConfig
    from framework.training.run import RunFolder


@dataclass(frozen=True, slots=True)
class Published:
    """What became of it: the name's state afterwards (None: it has none), and what the gate found."""

    adapter: NamedAdapter | None
    report: ParityReport


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run made, or any folder with an adapter.

    Attributes:
        folder: the adapter's.
        reference: what the model in training answered, where that was recorded.
        base: the name of the model that it was trained on; empty: not known.
        base_files: SHA-256 of that model's files, by name; empty: not known.
    """

    folder: Path
    reference: Reference | None = None
    base: str = ""
    base_files: Mapping[str, str] | None = None

    @classmethod
    def read(cls, place: Path) -> Trained:
        """A run folder, or the folder of an adapter.

        Raises:
            CallerError: it is neither.
        """
        folder = place / "adapter" if (place / "adapter").is_dir() else place
        if not (folder / "adapter_config.json").is_file():
            raise CallerError(
                f"{place} holds no adapter.", hint="Name the folder that `lectern train` wrote.", field="folder"
            )
        run = folder.parent if folder.name == "adapter" else folder
        reference = Reference.load(run / REFERENCE) if (run / REFERENCE).is_file() else None
        base = _facts(run).get("base", {})
        return cls(folder, reference, str(base.get("name", "")), base.get("files"))


def publish(
    run: RunFolder, config: TrainConfig, settings: Settings, say: Callable[[str], None] = lambda text: None
) -> Published:
    """What `lectern train` does with a finished run that wants to be live.

    Raises:
        CallerError: the run has made no adapter; see also `publish_folder`.
    """
    if config.adapter.kind == "full":
        raise CallerError(
            "Only adapters are published.", hint=f"Serve {run.model} as a model of its own.", field="publish.live"
        )
    return publish_folder(config.name, run.path, settings, base=config.base, say=say)


def publish_folder(
    name: str,
    place: Path,
    settings: Settings,
    *,
    base: str | None = None,
    overwrite: bool = False,
    probes: Probes | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Published:
    """Ask the parity gate, and register what passes as live. The report is written beside the adapter.

    What fails never takes the place of something that works: a new name is registered as refused, one that exists
    keeps its content.

    Args:
        base: None: what the run says it was trained on, or else the configured chat model.
        overwrite: a name that exists gets the new content.

    Raises:
        CallerError: no adapter, a bad name, or the adapter can't be served on its base.
        Conflict: the name has other content already, or the base is not the one that was trained on.
    """
    check_name(name)
    trained, models = Trained.read(place), settings.section("models", ModelsConfig)
    resolved = Catalog(models).resolve(base or trained.base or models.chat)
    store, tenant = AdapterStore.open(settings), settings.core.tenant
    _refuse_other_base(trained, resolved)
    known = _known(store, name, tenant, base_id(resolved.card))
    digest = identify(trained.folder).digest
    if known is not None and known.digest != digest and not overwrite:
        raise Conflict(
            f"There is an adapter {name!r} with other content already.",
            hint=f"`lectern adapters publish {name} {place} --replace` replaces it; or publish it under another name"
            f" and let `lectern eval promote {name} OTHER TASK` decide.",
            field="name",
        )
    report = _compared(trained, resolved, models, probes, say)
    report.save(trained.folder)
    if not report.passed and known is not None and known.digest != digest:
        return Published(known, report)
    checked = Checked(report.adapter, report.passed, report.reason)
    return Published(store.add(name, trained.folder, resolved, tenant, overwrite=overwrite, checked=checked), report)


def check(
    name: str,
    settings: Settings,
    *,
    against: Path | None = None,
    probes: Probes | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Published:
    """Ask the parity gate about a name that is registered; what it says decides whether requests may use it.

    One that ships with Lectern is compared only: nothing of it can be changed.

    Args:
        against: a run folder, or an adapter's, as the trainer saved it; None: the files that are served.

    Raises:
        NotFound: there is no such adapter.
        CallerError: `against` holds no adapter.
        Conflict: the name got other content meanwhile.
    """
    store, tenant, models = AdapterStore.open(settings), settings.core.tenant, settings.section("models", ModelsConfig)
    known = store.show(name, tenant)
    base, served = Catalog(models).resolve(known.base), store.files(known)
    trained = Trained.read(against or served)
    _refuse_other_base(trained, base)
    report = _compared(trained, base, models, probes, say, served)
    if known.origin == "shipped":
        return Published(known, report)
    return Published(store.mark(name, tenant, Checked(report.adapter, report.passed, report.reason)), report)


def _compared(
    trained: Trained,
    base: Resolved,
    models: ModelsConfig,
    probes: Probes | None,
    say: Callable[[str], None],
    served: Path | None = None,
) -> ParityReport:
    return check_parity(
        base.path,
        trained.folder,
        name=base_id(base.card),
        probes=probes,
        trained=trained.reference,
        served=served,
        device=models.engine.device,
        threads=models.threads,
        say=say,
    )


def _refuse_other_base(trained: Trained, base: Resolved) -> None:
    """Compare the files that the run was trained on with the base's, where the run has noted them."""
    if not trained.base_files:
        return
    from framework.training.run import file_hash

    for name, digest in trained.base_files.items():
        path = base.path / name
        if not path.is_file() or file_hash(path) != digest:
            raise Conflict(
                f"The adapter was trained on another base: {name} of {base.card.name} is not what it was then.",
                hint=f"Name the model that it was trained on ({trained.base}) with --base.",
                field="base",
            )


def _known(store: AdapterStore, name: str, tenant: str, base: str) -> NamedAdapter | None:
    try:
        return store.show(name, tenant, base)
    except NotFound:
        return None


def _facts(run: Path) -> Mapping[str, Any]:
    try:
        values = json.loads((run / "run.json").read_text(encoding="utf-8"))
        facts = values.get("facts", {})
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise CallerError(f"{run / 'run.json'} is damaged: {error}.", field="folder") from error
    return facts if isinstance(facts, dict) else {}
