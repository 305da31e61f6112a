"""Put the images of an edit into its row: their digests, and the size of the result."""

from __future__ import annotations

from dataclasses import replace
from math import lcm
from typing import Any

from latentfarm.inputs.masks import mask_of_transparency
from latentfarm.inputs.resolver import StoredInput
from latentfarm.limits import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE
from latentfarm.model_facts import ModelFacts
from latentfarm.server.context import ServerContext
from latentfarm.server.interactive.inputs import store_image
from latentfarm.server.openai.edit_request import EditRequest
from latentfarm.server.openai.image_request import ImageRequest

#: the mask of OpenAI's protocol, and that of rows
_MASK, _OWN_MASK = "mask", "mask_image"


def place_inputs(context: ServerContext, edit: EditRequest, facts: ModelFacts | None) -> ImageRequest:
    """Store the images of an edit, and return its request with them; blocks.

    A client of OpenAI's protocol knows no sizes of models, so an image of another size is cropped to the result's. If
    the request has no size, the result has that of the image, as near as the model can make it.

    Raises:
        RequestError: 400, one is no image, or its source may not be used.
    """
    image = store_image(context, "image", edit.files["image"])
    row: dict[str, Any] = {**edit.wanted.row, "image": image.digest}
    if _MASK in edit.files:
        row[_OWN_MASK] = store_image(context, _MASK, edit.files[_MASK], mask_of_transparency).digest
    elif _OWN_MASK in edit.files:
        row[_OWN_MASK] = store_image(context, _OWN_MASK, edit.files[_OWN_MASK]).digest
    if "width" not in row and "height" not in row:
        multiple = lcm(SIDE_MULTIPLE, facts.pixel_multiple) if facts else SIDE_MULTIPLE
        row["width"], row["height"] = nearest_size(image, multiple)
    notes = edit.wanted.notes
    wanted = (row.get("width", image.width), row.get("height", image.height))
    if wanted != (image.width, image.height) and "resize" not in row:
        row["resize"] = "crop"
        text = f"the image is cropped from {image.width}x{image.height} to {wanted[0]}x{wanted[1]}"
        notes = (*notes, f"{text}; resize chooses pad or stretch")
    return replace(edit.wanted, row=row, notes=notes)


def nearest_size(image: StoredInput, multiple: int) -> tuple[int, int]:
    """Return width and height that a model can make, of about the size and shape of an image.

    Args:
        image: the image.
        multiple: sides are multiples of it.
    """
    scale = max(min(1.0, MAX_SIDE / max(image.width, image.height)), MIN_SIDE / min(image.width, image.height))
    least, most = -(-MIN_SIDE // multiple) * multiple, MAX_SIDE // multiple * multiple
    width, height = (round(side * scale / multiple) * multiple for side in (image.width, image.height))
    return max(least, min(width, most)), max(least, min(height, most))
