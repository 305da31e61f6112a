"""The encoder of a VAE. Other threads call it while the engine's thread calls the decoder and the denoising model."""

from __future__ import annotations

from threading import RLock
from typing import Any

import torch

from latentfarm.errors import UnavailableError
from latentfarm_worker.posterior import Posterior

#: limits of the logarithm of a variance, as ``DiagonalGaussianDistribution`` of diffusers
_LOWEST, _HIGHEST = -30.0, 20.0


class WeightsGuard:
    """Whether weights are on the device. A thread holds the lock while it reads or moves them.

    Attributes:
        lock: held meanwhile.
        here: whether they are there; read and written with the lock.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.here = True


class ImageEncoder:
    """Encodes one image at a time, so that its latents do not depend on other images. Thread-safe.

    It calls the encoder's modules itself: ``AutoencoderKL.encode`` reads settings that the decoder's thread changes. On
    a GPU it has a stream of its own, so that it waits for what is queued for the device, but no step waits for it.

    Args:
        vae: diffusers' AutoencoderKL.
        device: its device.

    Attributes:
        guard: of the encoder's weights, which leave the device while another model has its turn.
    """

    def __init__(self, vae: Any, device: torch.device) -> None:
        self._vae = vae
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self.guard = WeightsGuard()

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor, kept: torch.Tensor | None = None) -> Posterior:
        """Return the distribution of an image's latents, in the VAE's own scale.

        Args:
            pixels: uint8 (H, W, 3) on the host.
            kept: what of the image is encoded, the rest being gray, bool (H, W) [default: all].

        Raises:
            UnavailableError: the weights have left the device.
        """
        image = 2.0 * (pixels.permute(2, 0, 1).float() / 255.0) - 1.0
        if kept is not None:
            image = image * kept
        with self.guard.lock:
            if not self.guard.here:
                raise UnavailableError("the model's weights have left the device", cause="turn")
            if self._device.type != "cuda":
                return self._encode(image)
            if self._stream is None:
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            # weights that have come back are copied on the other stream
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                return self._encode(image)

    def _encode(self, image: torch.Tensor) -> Posterior:
        """Return the distribution of an image, float32 (3, H, W); the copy to the host waits for the encoder."""
        dtype = next(self._vae.encoder.parameters()).dtype
        rows = image[None].to(self._device, dtype).contiguous(memory_format=torch.channels_last)
        moments: torch.Tensor = self._vae.encoder(rows)
        if self._vae.quant_conv is not None:
            moments = self._vae.quant_conv(moments)
        mean, log_variance = moments[0].float().cpu().contiguous().chunk(2)
        return Posterior(mean, torch.exp(0.5 * log_variance.clamp(_LOWEST, _HIGHEST)))
