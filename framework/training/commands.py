"""`lectern train`: from one file to an adapter that can be served."""

from __future__ import annotations

from pathlib import Path

import click

from framework.config import Settings


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--restart", is_flag=True, help="Throw away what an earlier run of this file left.")
@click.option("--no-eval", is_flag=True, help="Leave out the evaluations that the file names.")
@click.pass_context
def train(context: click.Context, file: Path, restart: bool, no_eval: bool) -> None:
    """Train what FILE describes, and write the run folder that it names.

    A run that was killed is taken up again by the same command, to the same losses. Where the file says that the
    adapter is to be live and the parity gate refuses it, the exit status is 1.
    """
    from framework.training.gate_commands import tell
    from framework.training.publish import publish
    from framework.training.start import run_file

    settings = Settings.load()
    run, config = run_file(file, settings, restart=restart, evaluate=not no_eval)
    click.echo(run.path)
    if config.publish.live:
        done = publish(run, config, settings)
        tell(config.name, done)
        context.exit(0 if done.report.passed else 1)
