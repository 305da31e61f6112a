"""Find out whether a device can render at all: if not, no job is to blame for what breaks."""

from __future__ import annotations

from collections.abc import Callable

from latentfarm_worker import device_errors
from latentfarm_worker.calibration.dummy_inputs import dummy_inputs
from latentfarm_worker.models.base import Family, native_shape


def find_fault(family: Family, rows: int, *, on_forward: Callable[[], None]) -> Exception | None:
    """Encode a text, evaluate the model with ``rows`` rows and decode, for no job; return the error if this breaks."""
    try:
        on_forward()
        inputs = dummy_inputs(family, native_shape(family), rows)
        family.predict(*inputs)
        family.decode(inputs.latents[:1])
    except Exception as error:  # noqa: BLE001 (any is returned)
        # memory is short because of the jobs that run
        return None if device_errors.is_out_of_memory(error) else error
    return None
