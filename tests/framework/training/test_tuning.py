"""How many numbers are trained, counted on models without weights."""

from __future__ import annotations

from typing import Any

import torch

from framework.training.config import AdapterConfig
from framework.training.tuning import IA3_TARGETS, Parameters, adapter_of, count


def smollm2() -> Any:
    """SmolLM2-135M's shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def tuned(model: Any, **config: Any) -> Parameters:
    import peft

    adapter = adapter_of(AdapterConfig(**config))
    assert adapter is not None
    with torch.device("meta"):
        return count(peft.get_peft_model(model, adapter))


def test_lora_of_rank_4_on_a_layer_of_512_by_64_trains_2304_numbers_of_32768() -> None:
    class Layer(torch.nn.Module):
        config = {"model_type": "one layer"}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.proj = torch.nn.Linear(64, 512, bias=False)

        prepare_inputs_for_generation = None

    found = tuned(Layer(), rank=4, targets=("proj",))
    assert (found.trained, found.all - found.trained) == (2_304, 32_768)


def test_ia3_on_smollm2_trains_57600_numbers() -> None:
    found = tuned(smollm2(), kind="ia3")
    assert found.trained == 57_600
    assert found.all - found.trained == 134_515_008
    assert f"{found.share:.2%}" == "0.04%"


def test_ia3_scales_what_its_authors_scaled_in_a_llama() -> None:
    from peft.utils import constants

    assert set(IA3_TARGETS) == set(constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING["llama"])
    feedforward = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING["llama"]
    adapter: Any = adapter_of(AdapterConfig(kind="ia3"))
    assert set(adapter.feedforward_modules) == set(feedforward)


def test_lora_is_on_every_linear_layer_but_the_output() -> None:
    shapes = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)] * 30
    assert tuned(smollm2(), rank=16).trained == sum(16 * (out + into) for out, into in shapes) == 4_884_480


def test_full_tuning_trains_everything() -> None:
    assert adapter_of(AdapterConfig(kind="full")) is None
    found = count(smollm2())
    assert found.trained == found.all == 134_515_008
    assert str(found) == "134,515,008 of 134,515,008 parameters are trained (100.00%)"


def test_lora_scales_by_alpha_and_twice_the_rank_without_one() -> None:
    plain: Any = adapter_of(AdapterConfig(rank=8))
    chosen: Any = adapter_of(AdapterConfig(rank=8, alpha=4))
    assert (plain.lora_alpha, chosen.lora_alpha) == (16, 4)
