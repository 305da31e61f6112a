"""The real worker, with a family of models that renders a small image of the latents in 20 ms and needs no weights."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from tests.chaos.journal import Journal, watch_ledger

from latentfarm.job import PromptSyntax
from latentfarm.storage.bucket import Bucket
from latentfarm_worker.adapters.base import AdapterPart
from latentfarm_worker.adapters.catalogue import Catalogue
from latentfarm_worker.adapters.lora.part import Loras
from latentfarm_worker.adapters.module_cache import ModuleCache
from latentfarm_worker.adapters.refiners import Refiners
from latentfarm_worker.checkpoints import Checkpoint
from latentfarm_worker.models import FAMILIES, Memory
from latentfarm_worker.models.image_encoder import WeightsGuard
from latentfarm_worker.models.recommended import Recommended
from latentfarm_worker.noise_schedule import OWN_SCHEDULE, NoiseSchedule
from latentfarm_worker.posterior import Posterior
from latentfarm_worker.text_encoders.embeddings import Embeddings
from latentfarm_worker.text_encoders.placement import EncoderPlacement
from latentfarm_worker.text_encoders.prompt import Prompt, Tensors, TokenizedPrompt

#: _class_name in model_index.json
PIPELINE = "ChaosPipeline"
#: the alias that the fake workers serve
ALIAS = "fake"
#: first words of prompts whose jobs harm their worker in ``predict``
BREAKS, KILLS, LOSES_DEVICE = DEEDS = "break", "kill", "lose"
#: seconds that the clock of a worker is off which has a wrong one
SKEW_S = 300.0
#: where each deed of a job is noted, as ``DEED-PID``; no job does any without
_DEEDS_AT = "CHAOS_DEEDS"


class FakeFamily:
    """See ``latentfarm_worker.models.base.Family``; its images depend on the seed, the steps and the scheduler."""

    pipeline = PIPELINE
    #: seconds of one step of all rows
    step_s = 0.02

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        self.name, self.device, self.dtype, self.vae_dtype = name, device, dtype, dtype
        self.latent_channels, self.vae_scale_factor, self.pixel_multiple, self.max_clip_skip = 4, 8, 8, 0
        self.modules: dict[str, torch.nn.Module] = {}
        self.encoder_parts: tuple[str, ...] = ()
        self.compiled, self.quantization, self.text_quantization = False, "none", "none"
        self.embedding_widths: tuple[int, ...] = ()
        self.embeddings: Embeddings | None = None
        self.adapter_parts: list[AdapterPart] = []
        self.adapter_modules = ModuleCache(device, 0)
        self.refiners = Refiners(None, channels=4, pipeline="", dtype=dtype, cache=self.adapter_modules)
        self.loras = Loras(torch.nn.Linear(1, 1), part="", encoders={}, pipeline="", dtype=dtype, device=device)
        self.inputs: tuple[str, ...] = ()
        self.required_inputs: tuple[str, ...] = ()
        self.vae_guard = WeightsGuard()
        self.encoder_placement = EncoderPlacement()
        self.text_conditions: dict[str, Any] = {"fake": name}
        self.native_width = self.native_height = 64
        self.embeds_guidance = False
        self.guided_above = 1.0
        self.scheduler_config: dict[str, Any] = {
            "_class_name": "EulerDiscreteScheduler",
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
        }
        self.model_digest, self.licence, self.max_prompt_tokens = "0" * 64, "", 77
        self.recommended = Recommended()

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device, memory: Memory | None = None
    ) -> FakeFamily:
        del memory
        return cls(checkpoint.name, device, dtype)

    def use_catalogue(self, catalogue: Catalogue) -> None:
        """Announce the adapters of a catalogue; no job uses them here."""
        self.loras.catalogue = catalogue

    def tokenize(self, prompt: str, syntax: PromptSyntax = "plain") -> TokenizedPrompt:
        del syntax
        word = prompt.partition(" ")[0]
        return TokenizedPrompt(((DEEDS.index(word) + 1,) if word in DEEDS else (),), count=2)

    def encode(self, prompts: Sequence[Prompt]) -> list[Tensors]:
        """Return zeros, or the number of the deed of a prompt."""
        return [{"encoder_hidden_states": torch.full((77, 4), float(sum(p.tokens.chunks[0])))} for p in prompts]

    def row_conditioning(self, width: int, height: int, guidance_scale: float) -> Tensors:
        del width, height, guidance_scale
        return {}

    def noise_schedule(self, num_inference_steps: int, width: int, height: int) -> NoiseSchedule:
        del num_inference_steps, width, height
        return OWN_SCHEDULE

    def combine(self, output: torch.Tensor, negative: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return negative + scale * (output - negative)

    def compile(self) -> None:
        """Compile nothing."""

    def uncompile(self) -> None:
        """Do nothing."""

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors) -> torch.Tensor:
        """Return bounded latents after ``step_s``, or do what the prompt of a job demands."""
        time.sleep(self.step_s)
        if _DEEDS_AT in os.environ:
            marks = {float(mark) for mark in conditioning["encoder_hidden_states"][:, 0, 0]}
            for number, deed in enumerate(DEEDS, start=1):
                if float(number) in marks:
                    _do(deed)
        # exact in each element, so that no neighbour and no size of a call changes a bit
        return latents.clamp(-1.0, 1.0) * (1.0 + timesteps / 1000)[:, None, None, None]

    def encode_image(self, pixels: torch.Tensor, kept: torch.Tensor | None = None) -> Posterior:
        """Return the mean of squares of 8 x 8 pixels, from -1 to 1."""
        del kept
        squares = (pixels.float() / 127.5 - 1).permute(2, 0, 1).unfold(1, 8, 8).unfold(2, 8, 8).mean(dim=(3, 4))
        mean = torch.cat([squares, squares[:1]])
        return Posterior(mean, torch.zeros_like(mean))

    def scale_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return latents

    def decode(
        self, latents: torch.Tensor, *, float32: bool = False, tiled: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first three channels as squares of 8 x 8 pixels."""
        del float32, tiled
        scaled = (latents[:, :3] / latents.std(dim=(1, 2, 3), keepdim=True) * 60 + 128).clamp(0, 255).to(torch.uint8)
        pixels = scaled.repeat_interleave(8, 2).repeat_interleave(8, 3).permute(0, 2, 3, 1).contiguous()
        return pixels, torch.ones(len(latents), dtype=torch.bool)


def _do(deed: str) -> None:
    """Break the step, die, or lose the device."""
    with (Path(os.environ[_DEEDS_AT]) / f"{deed}-{os.getpid()}").open("a") as file:
        file.write(f"{time.monotonic()}\n")
    if deed == BREAKS:
        raise IndexError(f"a prompt that begins with {BREAKS!r} breaks the step")
    if deed == KILLS:
        os.kill(os.getpid(), signal.SIGKILL)
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


class NoOpFamily(FakeFamily):
    """A fake family whose steps take no time."""

    step_s = 0.0


def write_model(folder: Path) -> Path:
    """Write a folder for which ``load_family`` returns the fake family."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": PIPELINE}))
    return folder


def register(family: type[FakeFamily] = FakeFamily) -> None:
    """Register the fake family for ``load_family``."""
    FAMILIES[PIPELINE] = cast("Any", family)
    torch.set_num_threads(1)


def run(journal: str, *, skewed: bool = False) -> int:
    """Be a worker process: what ``latentfarm worker`` runs; its clock may be off."""
    register()
    watch_ledger(Journal(Path(journal)))
    if skewed:
        _shift_clock()
    return run_worker()


def run_supervised(journal: str) -> int:
    """Be a supervisor with a worker process."""
    from latentfarm_worker.supervise.supervisor import main

    sys.argv = ["supervisor", "--", sys.executable, "-m", "tests.chaos.fake_worker", journal]
    return main()


def _shift_clock() -> None:
    """Set the clock of this process ahead, for what it writes down and for the signatures of its requests."""
    import botocore.auth

    now, now_for_signatures = time.time, botocore.auth.get_current_datetime
    time.time = lambda: now() + SKEW_S

    def ahead(*args: Any, **options: Any) -> Any:
        return now_for_signatures(*args, **options) + timedelta(seconds=SKEW_S)

    botocore.auth.get_current_datetime = ahead


def run_no_op() -> int:
    """Be a worker whose images are rendered and encoded, but not stored."""
    register(NoOpFamily)
    put = Bucket.put

    def put_all_but_images(self: Bucket, key: str, body: bytes, **options: Any) -> Any:
        return None if "/images/" in key else put(self, key, body, **options)

    Bucket.put = put_all_but_images  # type: ignore[method-assign]
    return run_worker()


def run_worker() -> int:
    """Be a worker process, as ``latentfarm worker`` has one."""
    # the settings are read when this is imported
    from latentfarm_worker.service.tasks import serve

    return serve()


def run_command(arguments: list[str]) -> int:
    """Be the command ``latentfarm``."""
    from latentfarm.cli import main

    sys.argv = ["latentfarm", *arguments]
    main()
    return 0


def run_mini(journal: str) -> int:
    """Be a worker process with the bundled model."""
    torch.set_num_threads(1)
    watch_ledger(Journal(Path(journal)))
    return run_worker()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
