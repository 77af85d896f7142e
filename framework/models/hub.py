"""Models from the Hugging Face hub: the files that are needed, one commit, no pickles, no code."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from framework.errors import LecternError, ModelUnavailable, NotFound
from framework.models.folder import PICKLES
from framework.models.progress import Report

if TYPE_CHECKING:
    from huggingface_hub.utils.tqdm import tqdm

WANTED = ["*.json", "*.safetensors", "README.md"]
# The same weights again, for other programs.
UNWANTED = ["onnx/*", "openvino/*", "original/*", "consolidated*", "checkpoint-*", "runs/*", "*.index.json.metadata"]
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def fetch(repository: str, revision: str | None, progress: Report, *, refresh: bool = False) -> Path:
    """The folder of one commit of a model, downloaded into Hugging Face's own cache unless it is there whole.

    Args:
        revision: commit, tag or branch; None: the main branch as it was when it was first downloaded.
        refresh: ask whether a branch has moved on, although a whole copy is here.

    Raises:
        NotFound: no such model or revision, or a private one.
        ModelUnavailable: the hub can't be reached, asks for a licence, or has the weights as pickles only.
    """
    from huggingface_hub import HfApi, snapshot_download

    if not refresh and (found := cached(repository, revision)):
        return found
    try:
        info = HfApi().model_info(repository, revision=revision)
        _refuse_pickles(repository, [str(file.rfilename) for file in info.siblings or ()])
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=WANTED,
                ignore_patterns=UNWANTED,
                tqdm_class=_bar(progress),
            )
        )
    except LecternError:
        raise
    except Exception as error:  # the client raises its HTTP library's errors too, and which library that is has changed
        raise _explained(repository, revision, error) from error


def cached(repository: str, revision: str | None) -> Path | None:
    """A copy that is known to be whole. One that another program fetched in part may lack the pooling's file."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        get_cached_repo_tree(repository, revision=revision)
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                local_files_only=True,
                allow_patterns=WANTED,
                ignore_patterns=UNWANTED,
            )
        )
    except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError, HFValidationError):
        return None


def _refuse_pickles(repository: str, names: Sequence[str]) -> None:
    files = [PurePosixPath(name) for name in names]
    if any(file.name in WEIGHTS for file in files):
        return
    pickles = sorted(str(file) for file in files if file.suffix in PICKLES)
    raise ModelUnavailable(
        f"{repository} has no model.safetensors" + (f", only {', '.join(pickles[:3])}." if pickles else "."),
        hint="Pickled weights may run code and are not read: choose a revision or a model with safetensors.",
    )


def _explained(repository: str, revision: str | None, error: Exception) -> LecternError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        return ModelUnavailable(
            f"{repository} asks for consent to its terms.",
            hint=f"Accept them at https://huggingface.co/{repository} and set HF_TOKEN.",
        )
    if isinstance(error, RevisionNotFoundError):
        return NotFound(f"{repository} has no revision {revision!r}.", field="revision")
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return NotFound(
            f"There is no model {repository!r} on the hub, or it is private.",
            hint="Check the spelling; for a private one set HF_TOKEN.",
            field="model",
        )
    reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return ModelUnavailable(
        f"{repository} is not on this machine and can't be fetched ({type(error).__name__}: {reason}).",
        hint=f"Run `lectern models pull {repository}` once with a network, or give the path of the model's folder.",
    )


def _bar(progress: Report) -> type[tqdm]:
    """A progress bar as the hub's client wants it, that tells `progress` and draws nothing."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, name: str | None = None, **options: Any) -> None:
            options |= {"file": StringIO(), "disable": False}
            super().__init__(*args, name=name, **options)  # type: ignore[no-untyped-call]  # theirs has no annotations
            # One of several: the others count files, and bytes as they were sent, compressed.
            self._measures = name == "huggingface_hub.snapshot_download"

        def update(self, n: float | None = 1) -> bool | None:
            drawn: bool | None = super().update(n)
            if self._measures:
                progress("downloading", int(self.n), int(self.total or 0))
            return drawn

        def close(self) -> None:
            if self._measures and not self.disable:  # the client also counts without calling `update`
                progress("downloading", int(self.n), int(self.total or 0))
            super().close()

    return Bar
