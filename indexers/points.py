"""What a point carries besides its vectors, and how points are brought back in step with the manifest."""

from __future__ import annotations

from framework.documents import Document, Scalar
from framework.retrieval.store import VectorStore
from indexers.manifest import Manifest
from indexers.rows import Collection


def payload(document: Document) -> dict[str, Scalar]:
    """What a point's filters may name: the document's metadata and its own fields, which win."""
    own = {
        "document_id": document.id,
        "source": document.source,
        "title": document.title,
        "media_type": document.media_type,
    }
    return {**document.metadata, **own}


def unfit(document: Document) -> str:
    """Why a document can't be stored; empty if it can."""
    values = payload(document)
    for key, value in values.items():
        if type(value) not in (str, int, float, bool):
            return f"Its metadata {key!r} is a {type(value).__name__}; text, numbers and booleans are stored."
        if isinstance(value, int | float) and not abs(value) < 2**63:
            return f"Its metadata {key!r} is {value}, which no filter can find."
    try:
        "".join((document.text, *(str(part) for pair in values.items() for part in pair))).encode("utf-8")
    except UnicodeEncodeError:
        return "It holds a lone surrogate, which is half a character."
    return ""


def settle(manifest: Manifest, store: VectorStore, collection: Collection) -> None:
    """Bring the pending points to what the manifest says: dead ones go, live ones get their payload anew."""
    pending = manifest.pending(collection)
    if not pending:
        return
    place = (collection.tenant, collection.name)
    owners = manifest.owners(collection, pending)
    documents = {d.id: payload(d) for d in manifest.documents(collection, sorted(set(owners.values())))}
    store.delete(*place, [id for id in pending if id not in owners])
    if owners:
        store.set_payload(*place, {id: documents[owner] for id, owner in owners.items()})
    store.flush(*place)
    manifest.settled(collection, pending)
