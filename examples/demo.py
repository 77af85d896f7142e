"""What `make demo` shows: three questions about the indexed documentation, with steps and citations.

Run it after `lectern index docs -c docs`.
"""

from __future__ import annotations

from agents import Agent
from agents.terminal import show, sources

QUESTIONS = (
    "What happens to a file that can't be read?",
    "How is an answer's citation checked?",
    "Does a hanging tool stop the whole run?",
)


def main() -> None:
    """Ask each question; the answers quote the documentation."""
    with Agent("guide", knowledge=["docs"]) as agent:
        for question in QUESTIONS:
            print(f"\n\033[1m{question}\033[0m", flush=True)
            answer = show(agent.stream(question))
            print(sources(answer.citations), flush=True)


if __name__ == "__main__":
    main()
