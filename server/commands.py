"""`lectern serve`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click


@click.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one.  [default: 8000]")
@click.option("-c", "--collection", "collections", multiple=True, help="Offer this collection only; may be repeated.")
@click.option("--model", help="The default chat model: an endpoint's name, or one of `lectern models list`.")
@click.option(
    "--allow-remote", is_flag=True, default=None, help="Listen for other machines too; there are no keys yet."
)
def serve(**options: Any) -> None:
    """Serve the OpenAI-compatible HTTP API.

    Chat models, embedding models and agents are the API's models; each collection is an agent, as collection:NAME.
    While it runs, `lectern index` and `lectern search` go through it.
    """
    from framework.config import Settings
    from framework.models.chat import check_chat
    from framework.models.config import ModelsConfig
    from server.config import ServerConfig
    from server.serving import serve_forever

    settings = Settings.load()
    model = options.pop("model")
    if model is not None:
        settings.values = {**settings.values, "models": {**settings.values.get("models", {}), "chat": model}}
        check_chat(model, settings.section("models", ModelsConfig), settings=settings)
    config = settings.section("server", ServerConfig)
    given = {name: value for name, value in options.items() if value is not None and value is not False and value != ()}
    serve_forever(settings, replace(config, **given), click.echo)
