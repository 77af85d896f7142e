"""`lectern feedback`: say whether an answer was right, and look at what was said."""

from __future__ import annotations

import json
import time

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def feedback() -> None:
    """Judge answers, for evaluation and training."""


@feedback.command()
@click.argument("thread")
@click.argument("verdict", type=click.Choice(["up", "down"]))
@click.option("--correction", default="", metavar="TEXT", help="What the answer should have been.")
@click.option("--comment", default="", metavar="TEXT", help="Anything else; it is not trained on.")
def add(thread: str, verdict: str, correction: str, comment: str) -> None:
    """Judge the last answer of THREAD. Judging it again replaces what was said."""
    from agents.feedback import Feedback
    from framework.config import Settings

    settings = Settings.load()
    made = Feedback(settings.home).judge_thread(
        settings.core.tenant, thread, verdict, correction=correction, comment=comment
    )
    click.echo(f"Stored: {made.verdict}, on the run {made.run_id}.")


@feedback.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def list_(as_json: bool) -> None:
    """What was said so far, oldest first."""
    from agents.feedback import Feedback
    from framework.config import Settings
    from framework.terminal import one_line

    settings = Settings.load()
    for item in Feedback(settings.home).all(settings.core.tenant):
        answer = item.seen.run.answer.text if item.seen.run.answer else ""
        if as_json:
            fields = {"run_id": item.run_id, "given": item.given, "verdict": item.verdict}
            texts = {"question": item.seen.run.question, "answer": answer}
            said = {"correction": item.correction, "comment": item.comment}
            click.echo(json.dumps({**fields, **texts, **said}, ensure_ascii=False))
            continue
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.given))
        click.echo(f"{day}  {item.verdict:4}  {item.run_id}  {one_line(item.seen.run.question)[:80]}")


@feedback.command()
@click.argument("run_id")
def remove(run_id: str) -> None:
    """Delete a judgement, with the question and passages that were stored with it."""
    from agents.feedback import Feedback
    from framework.config import Settings

    settings = Settings.load()
    Feedback(settings.home).remove(settings.core.tenant, run_id)
    click.echo(f"Removed the feedback on {run_id}.")
