"""Which decoder serves a model's folder, on which device and in which types."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from framework.engine.forward import Decoder
from framework.errors import ModelUnavailable

if TYPE_CHECKING:
    import torch

    from framework.engine.loader import Weights
    from framework.engine.spec import DecoderSpec

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16", "int8"]


def load_decoder(
    folder: Path,
    name: str,
    *,
    block_size: int,
    dtype: Dtype = "auto",
    kv_dtype: Dtype = "auto",
    device: str | None = None,
    adapter_slots: int = 0,
    kernels: bool = True,
    deterministic: bool = False,
    threads: int | None = None,
) -> Decoder:
    """The fastest decoder for the model: C++ kernels on CPUs, our own in torch, or transformers' model.

    Args:
        folder: in Hugging Face's layout, with safetensors.
        name: what the model is called in errors.
        dtype: of the weights; "auto": on CUDA bfloat16 (float16 on old cards); on a CPU int8 by the C++ kernels, else
            float32, since torch's own int8 has one scale a row of activations and loses more. Transformers' models are
            never rounded.
        kv_dtype: of keys and values; "auto": as fits the weights.
        device: "cpu", "cuda" or "cuda:1"; None: CUDA where there is a card.
        adapter_slots: adapters that are resident at once.
        kernels: compile and use the C++ kernels where they fit.
        deterministic: see `TorchDecoder`; the kernels always are.
        threads: that the kernels compute with; None: one a core.

    Raises:
        ModelUnavailable: the folder is no model, is broken, or can't be served; the message names the model.
    """
    from framework.engine.architectures import spec_of
    from framework.engine.loader import Weights, read_config

    with _naming(name):
        config = read_config(folder)
        spec, weights, place = spec_of(config), Weights(folder), _device(device)
        if spec is None:
            from framework.engine.architectures.general import load_general

            if deterministic:
                raise ModelUnavailable(
                    f"Models of the type {config.get('model_type')!r} run in transformers' own code, whose sums may "
                    "depend on the batch.",
                    hint="Set deterministic to false.",
                )
            general = _float_type(place) if dtype == "auto" else dtype
            return load_general(folder, weights, block_size=block_size, dtype=general, kv_dtype=kv_dtype, device=place)
        if kernels and place.type == "cpu" and _kernels_take(spec, block_size, dtype, kv_dtype):
            return _kernel_decoder(spec, weights, block_size, adapter_slots, dtype, kv_dtype, threads)
        from framework.engine.torch_decoder import TorchDecoder

        return TorchDecoder(
            spec,
            weights,
            block_size=block_size,
            dtype=_float_type(place) if dtype == "auto" else dtype,
            kv_dtype=kv_dtype,
            device=place,
            adapter_slots=adapter_slots,
            deterministic=deterministic,
        )


def decoder_for(
    folder: Path,
    *,
    block_size: int,
    dtype: Dtype = "auto",
    kv_dtype: Dtype = "auto",
    device: str | None = None,
    kernels: bool = True,
) -> Literal["kernels", "torch", "transformers"]:
    """What `load_decoder` would choose, told from config.json alone.

    Raises:
        ModelUnavailable: config.json or the device can't be used.
    """
    from framework.engine.architectures import spec_of
    from framework.engine.loader import read_config

    spec, place = spec_of(read_config(folder)), _device(device)
    if spec is None:
        return "transformers"
    fit = kernels and place.type == "cpu" and _kernels_take(spec, block_size, dtype, kv_dtype)
    return "kernels" if fit else "torch"


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Errors name the model, not only its folder."""
    try:
        yield
    except ModelUnavailable as error:
        raise ModelUnavailable(f"The model {name!r} can't be loaded: {error.message}", hint=error.hint) from error


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelUnavailable(f"there is no device {name!r}.", hint='Name "cpu", "cuda" or "cuda:1".') from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ModelUnavailable(f"the device {name!r} can't be used here.", hint='Name "cpu", or leave it out.')
    return device


def _kernels_take(spec: DecoderSpec, block_size: int, dtype: Dtype, kv_dtype: Dtype) -> bool:
    from framework.engine.kernels.decoder import TYPES, KernelDecoder

    known = all(each == "auto" or each in TYPES for each in (dtype, kv_dtype))
    return known and KernelDecoder.takes(spec, block_size)


def _kernel_decoder(
    spec: DecoderSpec,
    weights: Weights,
    block_size: int,
    adapter_slots: int,
    dtype: Dtype,
    kv_dtype: Dtype,
    threads: int | None,
) -> Decoder:
    from framework.engine.kernels.decoder import KernelDecoder

    given: dict[str, Any] = {} if dtype == "auto" else {"dtype": dtype}
    if kv_dtype != "auto" or dtype in ("float32", "bfloat16"):
        given["kv_dtype"] = dtype if kv_dtype == "auto" else kv_dtype
    return KernelDecoder(spec, weights, block_size=block_size, adapter_slots=adapter_slots, threads=threads, **given)


def _float_type(device: torch.device) -> Dtype:
    import torch

    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
