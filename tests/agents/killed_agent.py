"""Run by test_threads.py in a process of its own, which ends with kill -9 in the midst of a tool.

python killed_agent.py HOME
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from agents import Agent
from framework.config import Settings
from framework.testing.scripted import ScriptedChat, tool_call
from tools import ToolContext, tool

HOME = Path(sys.argv[1])


@tool
def book(room: str, context: ToolContext) -> str:
    """Book a room, once a key."""
    effects = HOME / "effects"
    with (HOME / "attempts").open("a") as file:
        file.write(f"{room}\n")
    if context.idempotency_key not in (effects.read_text() if effects.exists() else ""):
        with effects.open("a") as file:
            file.write(f"{room} {context.idempotency_key}\n")
    if room == "blue" and not (HOME / "killed").exists():
        (HOME / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{room} is booked"


if __name__ == "__main__":
    HOME.mkdir(exist_ok=True)
    script = [tool_call("book", room="red"), tool_call("book", room="blue"), "Both rooms are booked."]
    turns = script[2:] if (HOME / "killed").exists() else script
    settings = Settings({"lectern": {"home": str(HOME)}}, base=HOME)
    agent = Agent(tools=[book], model=ScriptedChat(turns), settings=settings)
    answer = agent.resume("t") if (HOME / "killed").exists() else agent.run("Book both rooms.", thread_id="t")
    print(answer.text, answer.stop, answer.tool_calls)
