"""What agents can do: tools made from functions, sets of them, and the executor that runs a model's calls."""

from __future__ import annotations

from tools.base import Tool, ToolContext, ToolResult
from tools.decorator import FunctionTool, tool
from tools.executor import Executor
from tools.registry import load_tools
from tools.toolset import Toolset

__all__ = ["Executor", "FunctionTool", "Tool", "ToolContext", "ToolResult", "Toolset", "load_tools", "tool"]
