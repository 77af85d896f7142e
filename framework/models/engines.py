"""The engines of this process: one for each model folder and way of running it, shared by all who ask for it."""

from __future__ import annotations

import asyncio
import atexit
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from framework.engine.async_engine import AsyncEngine
from framework.engine.statistics import Statistics
from framework.errors import ModelUnavailable
from framework.models.config import EngineConfig

if TYPE_CHECKING:
    import torch

    from framework.engine.forward import Decoder
    from framework.engine.llm_engine import LLMEngine

MB = 1 << 20
PREPARING = 4  # threads that prepare the requests of one engine
MOST_ON_CPU = 1024 * MB  # for keys and values, unless the configuration says otherwise


@dataclass(frozen=True, slots=True)
class _Key:
    """What makes two chats' engines the same: the folder, the state of its files, and how it is run."""

    folder: Path
    files: tuple[tuple[str, int, int], ...]
    config: EngineConfig
    threads: int | None

    @classmethod
    def of(cls, folder: Path, config: EngineConfig, threads: int | None) -> _Key:
        found = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
        stats = [(path.name, path.stat()) for path in found]
        files = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
        return cls(folder.resolve(), files, config, threads)


class Lease:
    """A share in an engine; the engine is closed when the last one is given back.

    Attributes:
        workers: threads that prepare the engine's requests. They take work as long as the process lives, so that a
            request that comes while the engine is closed is told by the engine.
    """

    def __init__(self, key: _Key, engine: AsyncEngine, workers: ThreadPoolExecutor) -> None:
        self.engine = engine
        self.workers = workers
        self._key = key
        self._returned = False

    def release(self) -> None:
        """Give it back; again does nothing. Waits until the present step of an engine that is closed is done."""
        with _LOCK:
            if self._returned:
                return
            self._returned = True
            leases = _LEASES[self._key]
            leases.remove(self)
            last = not leases
            if last:
                del _LEASES[self._key]
        if last:
            self.engine.close()
            with _LOCK:
                _OPEN.discard(self.engine)

    def abandon(self) -> None:
        """Give it back from wherever its holder is collected, perhaps by the engine's own thread or within a lock."""
        threading.Thread(target=self.release, name="lectern-release", daemon=True).start()

    async def drain(self, seconds: float) -> None:
        """Give it back; an engine that nobody else has finishes its requests first, within these seconds."""
        with _LOCK:
            alone = not self._returned and len(_LEASES[self._key]) == 1
        if alone:
            await self.engine.drain(seconds)
        await asyncio.to_thread(self.release)


_LOCK = threading.Lock()
_LEASES: dict[_Key, list[Lease]] = {}
_OPEN: set[AsyncEngine] = set()  # those whose thread may still run, leased or not


def lease(folder: Path, name: str, config: EngineConfig, threads: int | None = None) -> Lease:
    """A share in the engine of that folder; it is made, and the weights are loaded, when a request comes.

    Args:
        name: what the model is called in messages.
        threads: threads for the whole process's torch; None: torch's own choice.
    """
    key = _Key.of(folder, config, threads)
    with _LOCK:
        leases = _LEASES.setdefault(key, [])
        usable = next((one for one in leases if not one.engine.closed), None)
        if usable is not None:
            leases.append(Lease(key, usable.engine, usable.workers))
        else:
            engine = AsyncEngine(partial(make_engine, folder, name, config, threads), name, config.buffer)
            _OPEN.add(engine)
            leases.append(Lease(key, engine, ThreadPoolExecutor(PREPARING, thread_name_prefix="lectern-prepare")))
        return leases[-1]


def statistics() -> list[tuple[str, Statistics]]:
    """Name and figures of each engine of this process."""
    with _LOCK:
        engines = {id(one.engine): one.engine for leases in _LEASES.values() for one in leases}
    return [(engine.name, engine.statistics()) for engine in engines.values()]


def make_engine(folder: Path, name: str, config: EngineConfig, threads: int | None = None) -> LLMEngine:
    """Load a model and make room for its keys and values.

    Raises:
        ModelUnavailable: it can't be loaded.
    """
    import torch

    from framework.engine.decoders import load_decoder
    from framework.engine.llm_engine import LLMEngine
    from framework.engine.lora import AdapterCache
    from framework.engine.model_runner import ModelRunner
    from framework.engine.sampler import Sampler
    from framework.engine.scheduler import EngineLimits

    if threads is not None:
        torch.set_num_threads(threads)
    decoder = load_decoder(
        folder,
        name,
        block_size=config.block_size,
        dtype=config.dtype,
        kv_dtype=config.kv_dtype,
        device=config.device,
        adapter_slots=config.adapter_slots,
        kernels=config.kernels,
        deterministic=config.deterministic,
        threads=threads,
    )
    blocks = kv_blocks(decoder, config, _free_bytes(decoder.device))
    try:
        decoder.allocate(blocks)
    except (OSError, MemoryError, RuntimeError) as error:
        raise ModelUnavailable(
            f"{name} finds no memory for {blocks * decoder.block_bytes // MB} MB of keys and values: {error}",
            hint="Set kv_memory_mb in section [models.engine] to less.",
        ) from error
    limits = EngineLimits(
        max_sequences=config.max_sequences,
        max_tokens_per_step=config.max_tokens_per_step,
        max_waiting=config.max_waiting,
        block_size=config.block_size,
        blocks=blocks,
        context_length=decoder.context_length,
        vocabulary=decoder.vocabulary,
        adapter_slots=config.adapter_slots,
        prefix_cache=config.prefix_cache and decoder.shares_prefixes,
    )
    adapters = AdapterCache(config.adapter_memory_mb * MB) if config.adapter_slots else None
    return LLMEngine(ModelRunner(decoder, config.block_size, adapters), Sampler(), limits)


def kv_blocks(decoder: Decoder, config: EngineConfig, free: int) -> int:
    """How many blocks of keys and values to make room for; see `EngineConfig.kv_memory_mb`.

    Args:
        free: bytes of the device's memory that nobody uses.
    """
    if config.kv_memory_mb is not None:
        return max(config.kv_memory_mb * MB // decoder.block_bytes, 1)
    context = math.ceil(decoder.context_length / config.block_size)
    wanted = min(free // 4, MOST_ON_CPU) if decoder.device.type == "cpu" else free // 2
    bytes_ = max(wanted, min(context * decoder.block_bytes, free // 2))
    return max(min(bytes_ // decoder.block_bytes, config.max_sequences * context), 1)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


@atexit.register
def _close_all() -> None:
    """Daemon threads must not compute while the interpreter goes away."""
    with _LOCK:
        left = list(_OPEN)
    for engine in left:
        engine.close()
