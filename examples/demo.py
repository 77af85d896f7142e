"""What `make demo` shows: questions about the indexed documentation, with steps and citations.

Run it after `lectern index docs -c docs`.
"""

from __future__ import annotations

from agents import Agent
from agents.terminal import show, sources

QUESTIONS = (
    "What happens when an indexing run is killed?",
    "Can two processes open the embedded store?",
    "Where is everything stored that Lectern remembers?",
    "Who won the football world cup in 1998?",  # the documents don't say
)


def main() -> None:
    """Ask each question; the answers quote the documentation."""
    with Agent("guide", knowledge=["docs"]) as agent:
        for question in QUESTIONS:
            print(f"\n? {question}", flush=True)
            answer = show(agent.stream(question))
            print(sources(answer.citations), flush=True)


if __name__ == "__main__":
    main()
