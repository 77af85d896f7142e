"""What users test their agents and plugins with: a scripted chat model, and contract suites."""

from framework.testing.scripted import Request, ScriptedChat, tool_call

__all__ = ["Request", "ScriptedChat", "tool_call"]
