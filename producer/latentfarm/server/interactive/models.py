"""The models of the farm, and the one that a request means."""

from __future__ import annotations

import time
from dataclasses import dataclass

import anyio

from latentfarm.ledger import ModelRecord
from latentfarm.ledger.events import Event
from latentfarm.model_facts import ModelFacts
from latentfarm.server.context import ServerContext
from latentfarm.server.http.request_error import RequestError
from latentfarm.server.live.hub import Item, SlowSubscriberError

#: beginnings of the names of OpenAI's own image models, the defaults of their clients
_OPENAI_NAMES = ("gpt-image-", "dall-e-", "chatgpt-image-")
#: seconds after which a client tries again if there is no worker
NO_WORKER_RETRY_S = 10
_MAX_NAMED = 20
#: an event may be lost
_POLL_S = 1.0


@dataclass(frozen=True)
class ServedModel:
    """A model of the farm. ``since`` is the first heartbeat of its oldest worker, in seconds since 1970, or now.

    ``working``: it has a worker; otherwise it has only jobs that wait. ``facts`` are those that workers have announced.
    """

    name: str
    since: int
    working: bool
    facts: ModelFacts | None = None


async def find_models(context: ServerContext) -> list[ServedModel]:
    """Return the models that have workers, or jobs that wait for a worker, by name."""
    found: list[ServedModel] = await context.looked_up.get("models", lambda: context.run(_find, context))
    return found or await context.run(_find, context)


async def served_models(context: ServerContext) -> list[str]:
    """Return the names of the farm's models."""
    return [model.name for model in await find_models(context)]


def _find(context: ServerContext) -> list[ServedModel]:
    ledger, default = context.farm.ledger, context.settings.default_model
    known, now = ledger.model_records(), ledger.now_s()
    if default and default not in {model.name for model in known}:
        known.append(ModelRecord(default, (), 0, ledger.model_facts(default)))
    found = []
    for model in sorted(known, key=lambda each: each.name):
        since = min((worker.since_ms // 1000 for worker in model.workers), default=now)
        found.append(ServedModel(model.name, since, working=bool(model.workers), facts=model.facts))
    return found


async def facts_of_model(context: ServerContext, name: str) -> ModelFacts | None:
    """Return what workers have announced of a model that ``resolve_model`` has returned; None if they have not."""
    return next((model.facts for model in await find_models(context) if model.name == name), None)


async def resolve_model(context: ServerContext, name: str | None) -> str:
    """Return the model that a request means: the one that it names, or the default for none and for OpenAI's own.

    Raises:
        RequestError: 404 for an unknown model, 503 if the farm has none now, 400 if it has several and no default.
    """
    default = context.settings.default_model
    try:
        return _choose(name, await find_models(context), default)
    except RequestError:
        # a worker may have started since they were looked up
        return _choose(name, await context.run(_find, context), default)


async def await_models(context: ServerContext) -> None:
    """Wait until the farm has a model: a worker may be starting; at most ``worker_wait_s`` seconds."""
    if await find_models(context):
        return
    deadline = time.monotonic() + context.settings.worker_wait_s
    async with context.hub.subscribe(_is_start) as starts:
        while not await context.run(_find, context) and (left_s := deadline - time.monotonic()) > 0:
            with anyio.move_on_after(min(left_s, _POLL_S)):
                try:
                    await anext(starts)
                except (StopAsyncIteration, SlowSubscriberError):
                    await anyio.sleep(_POLL_S)


def _is_start(item: Item) -> bool:
    return isinstance(item, Event) and item.event == "worker_started"


def _choose(name: str | None, known: list[ServedModel], default: str) -> str:
    names = [model.name for model in known]
    if name and (name in names or not is_openai_name(name)):
        return _named(name, names)
    if default:
        return default
    candidates = [model.name for model in known if model.working] or names
    if not candidates:
        raise _no_worker()
    if len(candidates) > 1:
        raise RequestError(
            400, "model_required", f"the farm has several models; send one as model: {_list(names)}", param="model"
        )
    return candidates[0]


def is_openai_name(name: str) -> bool:
    """Return whether a name is that of one of OpenAI's own image models."""
    return name.startswith(_OPENAI_NAMES)


def _named(name: str, names: list[str]) -> str:
    if name in names:
        return name
    if not names:
        raise _no_worker()
    text = f"the model {name[:80]!r} is not served; write one of {_list(names)}"
    raise RequestError(404, "model_not_found", text, param="model")


def _no_worker() -> RequestError:
    text = "no worker serves the farm now, so it has no model; start one, or try again later"
    return RequestError(503, "no_worker", text, retry_after_s=NO_WORKER_RETRY_S)


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
