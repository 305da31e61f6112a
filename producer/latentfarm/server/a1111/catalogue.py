"""The lists that clients fill their menus with: models, samplers, schedule types, and what the farm has none of."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from latentfarm.samplers import A1111_AUTOMATIC, A1111_SAMPLERS, A1111_SCHEDULES
from latentfarm.server.context import context_of
from latentfarm.server.http.operation import Endpoint, Operation, Scope
from latentfarm.server.interactive.models import served_models

#: the sampler's usual schedule, and even steps
_GENERAL_SCHEDULES = ("Automatic", "Uniform")


def samplers() -> list[dict[str, Any]]:
    """Return the web UI's samplers that diffusers has, with our names as aliases."""
    return [
        {
            "name": name,
            "aliases": [solver],
            "options": {"scheduler": A1111_AUTOMATIC[solver]} if solver in A1111_AUTOMATIC else {},
        }
        for solver, name in sorted(A1111_SAMPLERS.items(), key=lambda pair: pair[1])
    ]


def schedule_types() -> list[dict[str, Any]]:
    """Return the web UI's schedule types that diffusers has."""
    return [
        {
            "name": label.lower().replace(" ", "_"),
            "label": label,
            "aliases": None,
            "default_rho": -1,
            "need_inner_model": False,
        }
        for label in (*_GENERAL_SCHEDULES, *A1111_SCHEDULES.values())
    ]


async def list_models(request: Request) -> Response:
    """Answer with the models of the farm."""
    return JSONResponse(
        [
            {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
            for name in await served_models(context_of(request))
        ]
    )


def _constant(answer: Any) -> Endpoint:
    async def endpoint(_request: Request) -> Response:
        return JSONResponse(answer)

    return endpoint


#: SillyTavern puts latent modes after the first upscaler, so there must be one
_NO_UPSCALER = {"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 1}
_LISTS: tuple[tuple[str, Any, str], ...] = (
    ("samplers", samplers(), "List the samplers"),
    ("schedulers", schedule_types(), "List the schedule types"),
    ("upscalers", [_NO_UPSCALER], "List the upscalers: none"),
    ("latent-upscale-modes", [], "List the modes of latent upscaling: none"),
    ("sd-vae", [], "List the autoencoders that a request may choose: none"),
    ("loras", [], "List the LoRAs: none"),
    ("embeddings", {"loaded": {}, "skipped": {}}, "List the embeddings: none"),
)

OPERATIONS = (
    Operation("GET", "/sdapi/v1/sd-models", list_models, Scope.READ, "List the models"),
    *(
        Operation("GET", f"/sdapi/v1/{name}", _constant(answer), Scope.READ, summary)
        for name, answer, summary in _LISTS
    ),
)
