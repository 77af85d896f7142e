"""Names of chat models, told right from wrong before anything is loaded."""

from __future__ import annotations

import pytest

from framework.errors import CallerError, NotFound
from framework.models.chat import check_chat, load_chat
from framework.models.config import EndpointConfig, ModelsConfig
from framework.models.local_chat import LocalChat

CONFIG = ModelsConfig(endpoints={"big": EndpointConfig("http://127.0.0.1:9/v1", "m")})


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "big", "scripted:anything", "owner/name"])
def test_a_name_that_may_be_a_chat_model_passes_without_being_loaded(name: str) -> None:
    check_chat(name, CONFIG)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(NotFound, match="no model 'nope'"):
        check_chat("nope", CONFIG)


def test_an_embedding_model_is_no_chat_model() -> None:
    with pytest.raises(CallerError, match="not a chat model"):
        check_chat("all-minilm-l6-v2", CONFIG)


def test_the_built_in_model_has_to_be_led_to_its_calls(chat_model: LocalChat) -> None:
    assert chat_model.guided
    assert not getattr(load_chat("big", CONFIG), "guided", False)
