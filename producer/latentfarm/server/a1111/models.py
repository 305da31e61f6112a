"""The model of a client's requests: the one that its key has chosen by an option, or the server's default.

A title of a model is its name alone.
"""

from __future__ import annotations

from starlette.requests import Request

from latentfarm.server.context import context_of
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.interactive.models import resolve_model, served_models
from latentfarm.server.security.access import access_of


async def chosen_model(request: Request) -> str:
    """Return the model of requests that name none.

    Raises:
        RequestError: the farm does not serve it any more, or it has no default.
    """
    context = context_of(request)
    owner = access_of(request).name
    chosen = await context.run(context.farm.ledger.chosen_model, owner)
    try:
        return await resolve_model(context, chosen or None)
    except RequestError as error:
        if error.code != "model_required":
            raise
        names = ", ".join(await served_models(context))
        text = f"the farm has several models; set the option sd_model_checkpoint to one of {names}"
        raise RequestError(400, error.code, text, param="sd_model_checkpoint") from None


async def choose_model(request: Request, title: str) -> None:
    """Make a model that of the key's later requests; an empty title takes the choice back.

    Raises:
        RequestError: the farm does not serve it.
    """
    context = context_of(request)
    model = await resolve_model(context, title) if title else ""
    await context.run(context.farm.ledger.choose_model, access_of(request).name, model)


async def model_option(request: Request) -> str:
    """Return the option that names the model; empty if there is none, because clients read options to find a server."""
    try:
        return await chosen_model(request)
    except RequestError:
        return ""
