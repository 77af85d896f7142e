"""The loop: turns, calls, results, limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agents import Agent, AnswerDelta, Budget, RunFinished, RunStarted, ThoughtDelta, ToolCalled, ToolReturned
from framework.config import Settings
from framework.errors import CallerError, ModelUnavailable
from framework.messages import Completion, Delta, Message, ToolCall, Usage, assistant, system, user
from framework.models.base import Choice, ToolChoice
from framework.testing.scripted import ScriptedChat, tool_call
from tools import Tool, ToolContext, ToolResult, tool

Scripted = Callable[..., tuple[Agent, ScriptedChat]]


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def fail() -> str:
    """Fail."""
    raise RuntimeError("the printer is on fire")


def counter(calls: list[str]) -> Tool:
    @tool
    def look(at: str) -> str:
        """Look at something."""
        calls.append(at)
        return f"I saw {at}."

    return look


async def test_the_model_calls_a_tool_and_answers_from_its_result(scripted: Scripted) -> None:
    agent, model = scripted([tool_call("add", a=1, b=2), "It is 3."], tools=[add])
    answer = await agent.arun("What is 1 + 2?")
    assert (answer.text, answer.stop, answer.steps, answer.tool_calls) == ("It is 3.", "answered", 2, 1)
    assert model.requests[1].messages[-1].content == "3"


async def test_calls_of_one_step_run_at_once_and_their_results_stand_in_order(scripted: Scripted) -> None:
    both_started, order = asyncio.Event(), []

    @tool
    async def slow() -> str:
        """Wait for the other call."""
        await both_started.wait()
        order.append("slow")
        return "slow result"

    @tool
    async def quick() -> str:
        """Let the other call go on."""
        order.append("quick")
        both_started.set()
        return "quick result"

    agent, model = scripted([[tool_call("slow"), tool_call("quick")], "Done."], tools=[slow, quick])
    await agent.arun("Go.")
    assert order == ["quick", "slow"]
    assert [message.content for message in model.requests[1].messages[-2:]] == ["slow result", "quick result"]


async def test_events_come_in_order_and_their_pieces_add_up(scripted: Scripted) -> None:
    agent, _ = scripted([tool_call("add", a=1, b=2), "It is three, I say."], tools=[add])
    events = [event async for event in agent.astream("1 + 2?")]
    kinds = [type(event) for event in events if not isinstance(event, AnswerDelta)]
    assert kinds == [RunStarted, ToolCalled, ToolReturned, RunFinished]
    assert "".join(event.text for event in events if isinstance(event, AnswerDelta)) == events[-1].answer.text


async def test_streamed_equals_unstreamed(scripted: Scripted, notes: object) -> None:
    turns = [tool_call("search_docs", query="refunds paid"), "Five days [1]. Or six [7]."]
    streamed = [event async for event in scripted(turns, knowledge=[notes])[0].astream("How long?")][-1].answer
    whole = await scripted(turns, knowledge=[notes])[0].arun("How long?")
    assert (streamed.text, streamed.citations, streamed.usage) == (whole.text, whole.citations, whole.usage)


async def test_text_before_a_call_is_a_thought(scripted: Scripted) -> None:
    call = Message("assistant", "Let me add.", (ToolCall("x", "add", '{"a": 1, "b": 1}'),))
    agent, _ = scripted([Completion(call, "tool_calls", Usage(1, 1)), "2"], tools=[add])
    events = [event async for event in agent.astream("1 + 1?")]
    assert [event.text for event in events if isinstance(event, ThoughtDelta)] == ["Let me add."]
    assert events[-1].answer.text == "2"


async def test_a_long_text_before_a_call_was_shown_and_stays_a_part_of_the_answer(scripted: Scripted) -> None:
    long = "This is a long introduction. " * 20
    call = Message("assistant", long, (ToolCall("x", "add", '{"a": 1, "b": 1}'),))
    agent, _ = scripted([Completion(call, "tool_calls", Usage(1, 1)), "2"], tools=[add])
    events = [event async for event in agent.astream("1 + 1?")]
    pieces = "".join(event.text for event in events if isinstance(event, AnswerDelta))
    assert pieces == events[-1].answer.text
    assert pieces.startswith("This is a long introduction.")
    assert pieces.endswith("2")


async def test_a_repeated_call_is_not_made_again_and_the_model_must_answer(scripted: Scripted) -> None:
    calls: list[str] = []
    again = ToolCall("", "look", '{"at":   "the moon"}')  # other spaces, the same call
    agent, model = scripted([tool_call("look", at="the moon"), again, "It is round."], tools=[counter(calls)])
    answer = await agent.arun("Look!")
    assert calls == ["the moon"]
    assert model.requests[2].tools == ()
    assert (answer.text, answer.stop) == ("It is round.", "repeated_call")
    assert "had made already" in answer.notices[0]


async def test_a_model_that_repeats_one_call_for_ever_is_stopped(scripted: Scripted) -> None:
    calls: list[str] = []
    agent, model = scripted([tool_call("look", at="it")] * 50, tools=[counter(calls)])
    answer = await agent.arun("Look!")
    assert (answer.stop, len(calls), len(model.requests)) == ("repeated_call", 1, 3)
    assert "I saw it." in answer.text


async def test_the_same_call_twice_in_one_step_is_made_once(scripted: Scripted) -> None:
    calls: list[str] = []
    agent, _ = scripted([[tool_call("look", at="a"), tool_call("look", at="a")], "Yes."], tools=[counter(calls)])
    answer = await agent.arun("Look!")
    assert (calls, answer.stop) == (["a"], "answered")


async def test_an_unknown_tool_and_wrong_arguments_are_told_to_the_model(scripted: Scripted) -> None:
    wrong = ToolCall("", "add", '{"a": "many"}')
    agent, model = scripted([tool_call("ad", a=1), wrong, ToolCall("", "add", "{nonsense"), "I can't."], tools=[add])
    answer = await agent.arun("1 + 1?")
    told = [request.messages[-1].content for request in model.requests[1:]]
    assert "There is no tool 'ad'" in told[0]
    assert "schema" in told[1]
    assert "JSON" in told[2]
    assert answer.stop == "answered"


async def test_a_model_that_only_makes_wrong_calls_ends_with_the_steps(scripted: Scripted) -> None:
    turns = [tool_call("nothing", n=n) for n in range(50)]
    agent, model = scripted(turns, tools=[add], budget=Budget(steps=4))
    answer = await agent.arun("Go.")
    assert (answer.stop, answer.steps, len(model.requests)) == ("steps", 4, 4)
    assert "4 steps" in answer.text


async def test_the_last_step_has_no_tools_so_the_model_answers(scripted: Scripted) -> None:
    turns = [tool_call("add", a=1, b=1), "Two."]
    agent, model = scripted(turns, tools=[add], budget=Budget(steps=2))
    answer = await agent.arun("1 + 1?")
    assert (answer.text, answer.stop, model.requests[1].tools) == ("Two.", "answered", ())


async def test_calls_beyond_the_budget_are_refused_and_the_model_answers(scripted: Scripted) -> None:
    calls: list[str] = []
    turns = [[tool_call("look", at=place) for place in "abcd"], "I saw a and b."]
    agent, model = scripted(turns, tools=[counter(calls)], budget=Budget(tool_calls=2))
    answer = await agent.arun("Look around.")
    assert sorted(calls) == ["a", "b"]
    assert [message.content[:9] for message in model.requests[1].messages[-4:]] == [
        "I saw a.",
        "I saw b.",
        "All 2 too",
        "All 2 too",
    ]
    assert (answer.text, answer.stop, answer.tool_calls) == ("I saw a and b.", "tool_calls", 2)


async def test_the_token_budget_ends_a_run_before_a_turn_that_would_exceed_it(scripted: Scripted) -> None:
    agent, model = scripted([tool_call("add", a=1, b=1), "never asked"], tools=[add], budget=Budget(tokens=150))
    answer = await agent.arun("1 + 1?")
    assert (answer.stop, len(model.requests)) == ("tokens", 1)
    assert "add: 2" in answer.text


async def test_an_answer_cut_by_the_token_budget_says_so(scripted: Scripted) -> None:
    cut = Completion(assistant("The answer is that"), "length", Usage(10, 4))
    answer = await scripted([cut])[0].arun("Why?")
    assert answer.stop == "tokens"
    assert answer.text.startswith("The answer is that\n\n(I stopped")


async def test_a_turn_that_takes_too_long_is_ended_and_what_was_written_is_kept(settings: Settings) -> None:
    closed = []

    class Slow(ScriptedChat):
        async def stream(self, messages: Any, **options: Any) -> AsyncIterator[Delta]:
            try:
                async for delta in super().stream(messages, **options):
                    yield delta
                    if delta.content:
                        await asyncio.Event().wait()
            finally:
                closed.append(True)

    agent = Agent(model=Slow(["Once upon a time."]), settings=settings, budget=Budget(seconds=0.3))
    answer = await agent.arun("Tell me.")
    assert (answer.stop, closed) == ("seconds", [True])
    assert answer.text.startswith("Once")


async def test_a_tool_that_hangs_is_ended_by_the_budget(scripted: Scripted) -> None:
    @tool
    async def hang() -> str:
        """Hang."""
        await asyncio.Event().wait()
        return ""

    agent, _ = scripted([tool_call("hang"), "never asked"], tools=[hang], budget=Budget(seconds=0.3))
    assert (await agent.arun("Go.")).stop == "seconds"


async def test_a_failing_tool_is_told_to_the_model(scripted: Scripted) -> None:
    agent, model = scripted([tool_call("fail"), "It burns."], tools=[fail])
    assert (await agent.arun("Print.")).stop == "answered"
    assert "on fire" in model.requests[1].messages[-1].content


async def test_a_model_that_is_down_is_an_error_to_the_caller(scripted: Scripted) -> None:
    agent, _ = scripted([tool_call("add", a=1, b=2), ModelUnavailable("The server is gone.")], tools=[add])
    with pytest.raises(ModelUnavailable, match="gone"):
        await agent.arun("1 + 2?")


async def test_a_silent_model_is_told(scripted: Scripted) -> None:
    answer = await scripted([""])[0].arun("Hello?")
    assert answer.text == answer.notices[0] == "The model gave no answer."


async def test_call_ids_that_a_model_uses_twice_become_different(scripted: Scripted) -> None:
    keys: list[str] = []

    @tool
    def note(text: str, context: ToolContext) -> str:
        """Note."""
        keys.append(context.idempotency_key)
        return "ok"

    turns = [ToolCall("same", "note", json.dumps({"text": str(n)})) for n in range(2)]
    await scripted([*turns, "Done."], tools=[note])[0].arun("Note it.")
    assert len(set(keys)) == 2


async def test_a_callers_history_reaches_the_model_without_its_system_message(scripted: Scripted) -> None:
    agent, model = scripted(["Nine."])
    answer = await agent.arun("And you?", history=[system("Speak German."), user("How old?"), assistant("Eight.")])
    sent = model.requests[0].messages
    assert [message.role for message in sent] == ["system", "user", "assistant", "user"]
    assert "Speak German." not in sent[0].content
    assert "system message" in answer.notices[0]


async def test_old_turns_that_do_not_fit_are_left_out_with_a_notice(scripted: Scripted, settings: Settings) -> None:
    model = ScriptedChat(["Yes."], context_length=400)
    history = [message for n in range(20) for message in (user(f"Question {n} " + "word " * 20), assistant("Answer."))]
    answer = await Agent(model=model, settings=settings).arun("Still there?", history=history)
    assert "oldest turns" in answer.notices[0]
    assert model.requests[0].messages[1].role == "user"
    assert "Question 19" in model.requests[0].messages[-3].content


async def test_what_a_tool_returned_beyond_the_limit_is_cut_with_a_notice(scripted: Scripted) -> None:
    @tool
    def flood() -> ToolResult:
        """Return a lot."""
        return ToolResult("x" * 30_000)

    answer = await scripted([tool_call("flood"), "Much."], tools=[flood])[0].arun("Go.")
    assert answer.notices == ("10000 characters of what flood returned were cut.",)


@pytest.mark.parametrize("budget", [{"steps": 0}, {"tool_calls": -1}, {"tokens": 0}, {"seconds": float("nan")}])
def test_a_budget_without_an_end_is_refused(budget: dict[str, float]) -> None:
    with pytest.raises(CallerError, match=next(iter(budget))):
        Budget(**budget)  # type: ignore[arg-type]  # the wrong value is the point


async def test_without_knowledge_brackets_are_left_alone(scripted: Scripted) -> None:
    assert (await scripted(["Write items[1] or see [2]."])[0].arun("How?")).text == "Write items[1] or see [2]."


def led(scripted: Scripted, *turns: Any, **options: Any) -> tuple[Agent, ScriptedChat]:
    """An agent whose model is too small to call a tool by itself."""
    agent, model = scripted(list(turns), **options)
    model.guided = True
    return agent, model


async def test_a_small_model_is_asked_which_tool_and_then_for_the_call(scripted: Scripted) -> None:
    agent, model = led(scripted, "add", tool_call("add", a=1, b=2), tools=[add])
    answer = await agent.arun("1 + 2?")
    assert (answer.text, answer.stop, answer.notices) == ("According to the tool add: 3", "answered", ())
    assert model.requests[0].constraint == Choice(("add", "none"))
    assert model.requests[1].tool_choice == ToolChoice.named("add")


async def test_a_small_model_that_chooses_no_tool_answers_by_itself(scripted: Scripted) -> None:
    agent, model = led(scripted, "none", "Hello, Ada.", tools=[add])
    assert (await agent.arun("Say hello to Ada.")).text == "Hello, Ada."
    assert model.requests[1].tools == ()


async def test_a_small_model_that_writes_gets_the_passages_without_searching(scripted: Scripted, notes: Any) -> None:
    agent, model = led(scripted, "Within five days [1].", knowledge=[notes], mode="write")
    answer = await agent.arun("Within how many days are refunds paid?")
    assert (answer.stop, answer.supported, answer.tool_calls) == ("answered", True, 1)
    assert notes.queries == ["Within how many days are refunds paid?"]
    assert [request.tools for request in model.requests] == [()]


async def test_one_turn_has_a_limit_of_its_own(scripted: Scripted) -> None:
    agent, model = scripted(["Fine."], budget=Budget(turn_tokens=7))
    await agent.arun("Hello?")
    assert model.requests[0].params.max_tokens == 7
