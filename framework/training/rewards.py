"""What an answer is judged by: rules for reading and calling, a function of the user's, a reward model.

A reward is a function of a row, whose last message is the right answer, and of the answer that was given. It returns a
number, higher for better, or None where it does not apply.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeAlias

from framework.documents import content_hash
from framework.errors import ConfigError, ModelFault
from framework.messages import Message, ToolCall, ToolSpec, assistant
from framework.models.chat_text import ChatText
from framework.models.json_schema import misfit
from framework.prompts.reading import Style, taken_apart
from framework.prompts.tool_formats import CALL, CallReader
from framework.registry import Registry
from framework.training.asked import declined
from framework.training.reward_model import RewardModel
from framework.training.row_parts import words
from framework.training.rows import ChatRow

Reward: TypeAlias = Callable[[ChatRow, Message], float | None]
FIELD: Final = "preference.rewards"
ARTICLES: Final = frozenset(("a", "an", "the"))
PLUGINS: Registry[Reward] = Registry("reward", "lectern.rewards")


def f1(row: ChatRow, answer: Message) -> float | None:
    """Reading: F1 of the answer's words against the right one's; 0 for a refusal. Applies where there is an answer."""
    right = row.messages[-1].content
    if taken_apart(row.messages[:-1]) is None or declined(right):
        return None
    gold, said = (Counter(w for w in words(text) if w not in ARTICLES) for text in (right, answer.content))
    shared = (gold & said).total()
    return 2 * shared / (gold.total() + said.total()) if shared else 0.0


def verbatim(row: ChatRow, answer: Message) -> float | None:
    """Reading: 1 for a brief answer that stands in the passage. Applies where the right one does."""
    asked = taken_apart(row.messages[:-1])
    if asked is None or asked.style is not Style.BRIEF or not _stands_in(row.messages[-1].content, asked.passage):
        return None
    return float(_stands_in(answer.content, asked.passage))


def declines(row: ChatRow, answer: Message) -> float | None:
    """Reading: 1 for declining what the passage does not answer and answering what it does."""
    if taken_apart(row.messages[:-1]) is None:
        return None
    return float(declined(answer.content) is declined(row.messages[-1].content))


def call(row: ChatRow, answer: Message) -> float | None:
    """Tools: 1 for the right calls, and for none where none serves; less for a call with something wrong in it."""
    right = row.messages[-1]
    if not row.tools or (row.messages[-2].role != "user" and not right.tool_calls):
        return None
    if not right.tool_calls:
        return float(not answer.tool_calls and CALL not in answer.content)
    schemas = {tool.name: tool.parameters for tool in row.tools}
    found = [
        _alike(expected, made, schemas)
        for expected, made in zip(right.tool_calls, answer.tool_calls, strict=False)  # what is missing counts 0
    ]
    return sum(found) / max(len(right.tool_calls), len(answer.tool_calls))


BUILT_IN: Final[Mapping[str, Reward]] = {"f1": f1, "verbatim": verbatim, "declines": declines, "call": call}


def _stands_in(text: str, passage: str) -> bool:
    return bool(words(text)) and f" {' '.join(words(text))} " in f" {' '.join(words(passage))} "


def _alike(expected: ToolCall, made: ToolCall, schemas: Mapping[str, Mapping[str, Any]]) -> float:
    """0 for another tool, 0.25 for arguments that are none, from 0.5 to 1 by how many of them are right."""
    if made.name != expected.name:
        return 0.0
    right, given = json.loads(expected.arguments), _json(made.arguments)
    if not isinstance(given, dict) or misfit(given, schemas[made.name]):
        return 0.25
    names = right.keys() | given.keys()
    same = sum(name in right and name in given and right[name] == given[name] for name in names)
    return 0.5 + 0.5 * (same / len(names) if names else 1.0)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def read_answer(ids: Sequence[int], text: ChatText, tools: Sequence[ToolSpec]) -> Message:
    """Generated tokens as the message that serving would make of them."""
    end = next((place for place, id_ in enumerate(ids) if id_ in text.ends), len(ids))
    said = text.tokens.tokenizer.decode(list(ids[:end]), skip_special_tokens=False).strip()
    if not tools:
        return assistant(said)
    reader = CallReader([tool.name for tool in tools], lambda number: f"call_{number}")
    try:
        content, calls = reader.read(said)
    except ModelFault:
        return assistant(said)
    return Message("assistant", content + reader.flush(), tool_calls=tuple(calls)) if calls else assistant(said)


def find(name: str, folder: Path) -> Reward:
    """The reward of a name: a built-in rule, FILE.py:NAME, the folder of a reward model, or an installed plugin.

    Args:
        folder: what paths are relative to.

    Raises:
        ConfigError: there is none, or it can't be imported.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    file, colon, function = name.rpartition(":")
    if colon:
        return _of_file(folder / file, function, name)
    if (folder / name).is_dir():
        model = RewardModel(folder / name)
        return lambda row, answer: model.score((*row.messages[:-1], answer), row.tools)
    if name in PLUGINS:
        return PLUGINS.get(name)
    known = ", ".join((*BUILT_IN, *PLUGINS.names()))
    raise ConfigError(
        f"There is no reward {name!r}.", hint=f"Known: {known}; or name FILE.py:NAME, or a folder.", field=FIELD
    )


def files(names: Sequence[str], folder: Path) -> list[Path]:
    """The files that rewards are read from: what they say is part of a run.

    Raises:
        ConfigError: one is missing.
    """
    found = []
    for name in names:
        file, colon, _ = name.rpartition(":")
        if colon and not (folder / file).is_file():
            raise ConfigError(f"There is no file {folder / file} for the reward {name!r}.", field=FIELD)
        if colon:
            found.append(folder / file)
        elif name not in BUILT_IN and (folder / name).is_dir():
            found += sorted((folder / name).glob("**/adapter_model.safetensors"))
    return found


def _of_file(path: Path, name: str, whole: str) -> Reward:
    module = _import(path)
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{path} has no function {name!r}.", hint=f"{whole!r} names one.", field=FIELD)
    reward: Reward = function
    return reward


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"lectern_reward_{content_hash(str(path.resolve()))[:12]}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"There is no Python file {path}.", field=FIELD)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's file may raise anything
        del sys.modules[spec.name]
        raise ConfigError(f"{path} can't be imported: {type(error).__name__}: {error}.", field=FIELD) from error
    return module
