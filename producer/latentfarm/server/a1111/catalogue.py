"""The lists that clients fill their menus with: models, samplers, adapters, and what the farm has none of."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from latentfarm.adapter_kind import AdapterKind
from latentfarm.samplers import A1111_AUTOMATIC, A1111_SAMPLERS, A1111_SCHEDULES
from latentfarm.server.a1111.models import model_option
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


async def list_loras(request: Request) -> Response:
    """Answer with the LoRAs of the key's model."""
    names = await _adapters(request, AdapterKind.LORA)
    return JSONResponse([{"name": name, "alias": name, "path": name, "metadata": {}} for name in names])


async def list_embeddings(request: Request) -> Response:
    """Answer with the embeddings of the key's model. A prompt has them in angle brackets."""
    names = await _adapters(request, AdapterKind.EMBEDDING)
    shown = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": None, "vectors": None}
    return JSONResponse({"loaded": {f"<{name}>": shown for name in names}, "skipped": {}})


async def list_controlnets(request: Request) -> Response:
    """Answer with the ControlNets of the key's model."""
    return JSONResponse({"model_list": list(await _adapters(request, AdapterKind.CONTROLNET))})


async def _adapters(request: Request, kind: AdapterKind) -> tuple[str, ...]:
    """Return the names that workers of the key's model have announced; none if the key has no model."""
    model = await model_option(request)
    context = context_of(request)
    found = await context.run(context.farm.ledger.announced_adapters, model) if model else None
    return found[kind] if found else ()


def _constant(answer: Any) -> Endpoint:
    async def endpoint(_request: Request) -> Response:
        return JSONResponse(answer)

    return endpoint


#: of a second stage: before decoding, and after it. SillyTavern puts the first after the first of the second
_LATENT_MODES, _UPSCALERS = ("Latent",), ("None", "Lanczos")
#: what makes the image that a ControlNet follows
_MODULES = ("none", "canny")
_LISTS: tuple[tuple[str, Any, str], ...] = (
    ("samplers", samplers(), "List the samplers"),
    ("schedulers", schedule_types(), "List the schedule types"),
    (
        "upscalers",
        [{"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4} for name in _UPSCALERS],
        "List the upscalers of pixels",
    ),
    ("latent-upscale-modes", [{"name": name} for name in _LATENT_MODES], "List the upscalers of latents"),
    ("sd-vae", [], "List the autoencoders that a request may choose: none"),
)

OPERATIONS = (
    Operation("GET", "/sdapi/v1/sd-models", list_models, Scope.READ, "List the models"),
    Operation("GET", "/sdapi/v1/loras", list_loras, Scope.READ, "List the LoRAs"),
    Operation("GET", "/sdapi/v1/embeddings", list_embeddings, Scope.READ, "List the embeddings"),
    Operation("GET", "/controlnet/model_list", list_controlnets, Scope.READ, "List the ControlNets"),
    Operation(
        "GET",
        "/controlnet/module_list",
        _constant({"module_list": list(_MODULES)}),
        Scope.READ,
        "List what makes the images that ControlNets follow",
    ),
    *(
        Operation("GET", f"/sdapi/v1/{name}", _constant(answer), Scope.READ, summary)
        for name, answer, summary in _LISTS
    ),
)
