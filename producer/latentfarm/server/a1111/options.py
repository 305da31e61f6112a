"""The web UI's options. The only one that a client can change is the model of its key's later requests."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from latentfarm.server.a1111.models import choose_model, model_option
from latentfarm.server.a1111.text_to_image import read_settings
from latentfarm.server.http.body import read_json
from latentfarm.server.http.operation import Operation, Scope
from latentfarm.server.http.request_error import RequestError

#: options that clients read, and that a request may override
_FIXED: dict[str, Any] = {
    "CLIP_stop_at_last_layers": 1,
    "samples_format": "png",
    "sd_checkpoint_hash": "",
    "sd_vae": "Automatic",
}


async def get_options(request: Request) -> Response:
    """Answer with the options."""
    return JSONResponse({"sd_model_checkpoint": await model_option(request), **_FIXED})


async def set_options(request: Request) -> Response:
    """Choose the model. Clients send all options back, so the others are accepted as they are."""
    given = await read_json(request)
    if not isinstance(given, dict):
        raise RequestError(400, "invalid_request", 'the body is no object; send {"sd_model_checkpoint": "..."}')
    for name in [name for name, value in _FIXED.items() if given.get(name, value) != value]:
        text = f"the option {name} is fixed here; send it as override_settings of each request"
        raise RequestError(400, "invalid_request", text, param=name)
    settings = read_settings({name: value for name, value in given.items() if name not in _FIXED})
    if "sd_model_checkpoint" in given:
        await choose_model(request, settings.model)
    return JSONResponse(None)


OPERATIONS = (
    Operation("GET", "/sdapi/v1/options", get_options, Scope.READ, "Get the options"),
    Operation(
        "POST", "/sdapi/v1/options", set_options, Scope.SUBMIT, "Choose the model of later requests", audited=True
    ),
)
