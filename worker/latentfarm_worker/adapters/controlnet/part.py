"""The ControlNets of one model: their holds, and their calls.

``ControlNet`` (arXiv 2302.05543): a copy of the first half of the model reads an image besides the latents, and adds
residuals to the model's own. A row's residuals are multiplied by its scale, and by 0 outside the net's share of the
steps, as diffusers does; so a row is in the calls of its nets from its first step to its last.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch

from latentfarm.adapter_kind import AdapterKind
from latentfarm.edit_fields import Control
from latentfarm.errors import JobError
from latentfarm.job import Job
from latentfarm.step_counts import evaluations_between
from latentfarm_worker.adapters.catalogue import Adapter, Catalogue
from latentfarm_worker.adapters.controlnet.control_image import ControlImages
from latentfarm_worker.adapters.model_loading import Config, completed, load_checked, read_config
from latentfarm_worker.adapters.module_cache import LoadedModule, ModuleCache
from latentfarm_worker.adapters.module_hold import ModuleHold
from latentfarm_worker.host_copy import send
from latentfarm_worker.text_encoders.prompt import Tensors

if TYPE_CHECKING:
    from latentfarm_worker.engine.job_inputs import JobInputs
    from latentfarm_worker.engine.sampling_plan import SamplingPlan

#: before the number of a net among those of its row, and its digest
PREFIX = "controlnet:"
_SCALE, _IMAGE = ":scale", ":image"

#: ``PipelineModel.encode_image``: an image, uint8 (H, W, 3), to mean and deviation, float32 (C, h, w) on the host
Encode = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class NetCall(NamedTuple):
    """The call of a net for a micro-batch.

    Attributes:
        module: the net.
        image: what it follows, (R, ...), as ``ControlNets.condition`` returns it.
        scale: the factor of each row's residuals, float32 (R,); 0 where the net is off.
    """

    module: Any
    image: torch.Tensor
    scale: torch.Tensor


class Use(NamedTuple):
    """A net that an image uses: its control, the net, and the control image, uint8 (H, W, 3)."""

    control: Control
    net: LoadedModule
    image: torch.Tensor


class ControlHold(ModuleHold):
    """The nets of one image."""

    def __init__(self, nets: ControlNets, seed: int, evaluations: int) -> None:
        super().__init__(nets.cache)
        self._nets = nets
        self._seed = seed
        self._evaluations = evaluations
        self._uses: list[Use] = []
        self._images: list[torch.Tensor] = []

    def add(self, use: Use, adapter: Adapter) -> None:
        """Add the next net."""
        self._uses.append(use)
        self._modules.append(use.net)
        self.draws += self._nets.reads_sample(use.net.module)
        self.adapters.append(adapter)

    def at(self, evaluation: int) -> tuple[float, ...]:
        """Return the scale of each net at an evaluation, 0 where it is off."""
        bounds = (evaluations_between(use.control.start, use.control.end, self._evaluations) for use in self._uses)
        return tuple(
            use.control.scale if first <= evaluation < end else 0.0
            for use, (first, end) in zip(self._uses, bounds, strict=True)
        )

    def conditioning(self, row: int) -> Tensors:
        """Return of each net the control image, and float32 (3,): the scale, and where it begins and ends."""
        if not self._images:
            generator = torch.Generator("cpu").manual_seed(self._seed)
            self._images = [self._nets.condition(use.net.module, use.image, generator) for use in self._uses]
        found: dict[str, torch.Tensor] = {}
        for number, (use, image) in enumerate(zip(self._uses, self._images, strict=True)):
            name = f"{PREFIX}{number}:{use.net.key}"
            # such a net follows the prompt only, in diffusers' guess mode
            off = row > 0 and use.net.module.config.get("global_pool_conditions", False)
            first, end = evaluations_between(use.control.start, use.control.end, self._evaluations)
            numbers = torch.tensor([0.0 if off else use.control.scale, first, end])
            found[name + _SCALE] = send(numbers, image.device)
            found[name + _IMAGE] = image
        return {**found, **self._nets.of_row(negative=row > 0)}


class ControlNets(ABC):
    """The nets of one model, an ``adapters.base.AdapterPart``.

    Args:
        model: the denoising model.
        vae: its VAE.
        encode: returns the VAE's distribution of an image.
        pipeline: the diffusers pipeline of the model, for messages.
        dtype: the dtype of the nets.
        cache: the nets in memory.

    Attributes:
        catalogue: the adapters by alias.
    """

    #: the diffusers class of the nets
    net_class: ClassVar[str]
    #: entries of the configs of model and net that must be equal
    compared: ClassVar[tuple[str, ...]]

    def __init__(
        self, model: Any, *, vae: Any, encode: Encode, pipeline: str, dtype: torch.dtype, cache: ModuleCache
    ) -> None:
        self.model, self.vae = model, vae
        self.dtype = dtype
        self.device = torch.device(model.device)
        self.catalogue = Catalogue()
        self.cache = cache
        self._encode = encode
        self.pipeline = pipeline
        self._images = ControlImages()

    def prepare(self, job: Job, inputs: JobInputs, plan: SamplingPlan) -> ControlHold | None:
        """Load the nets of a job and make its control images; None if it has none. Thread-safe.

        Raises:
            JobError: code ``adapter_unknown``, ``adapter_mismatch`` for a net of another base model,
                ``adapter_invalid`` for one that cannot be read, ``input_missing`` if a control image is not there.
        """
        if not job.controls:
            return None
        if len(inputs.controls) != len(job.controls):
            raise JobError(
                "input_missing", f"{len(job.controls)} ControlNets have {len(inputs.controls)} control images"
            )
        hold = ControlHold(self, job.seed, plan.num_evaluations)
        for control, image in zip(job.controls, inputs.controls, strict=True):
            adapter = self.catalogue.get(AdapterKind.CONTROLNET, control.name)
            name = f"ControlNet {adapter.alias}"
            net = self.cache.get(adapter.digest, name, partial(self._load, adapter), hold)
            hold.add(Use(control, net, self._images.get(control, image)), adapter)
        return hold

    # -- calls -----------------------------------------------------------------------------------------------

    @abstractmethod
    def condition(self, net: Any, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return what a net reads of a control image, on the device, without a dimension for rows.

        Args:
            net: the net.
            image: the image, uint8 (H, W, 3) on the host.
            generator: the job's, which draws one noise of the latents' size if ``reads_sample``.
        """

    def reads_sample(self, net: Any) -> bool:
        """Return whether a net reads a sample of the latents of its image."""
        del net
        return False

    def pixels(self, image: torch.Tensor) -> torch.Tensor:
        """Return an image, uint8 (H, W, 3) on the host, from -1 to 1, float32 (3, H, W) on the device."""
        return send((image.permute(2, 0, 1).float() / 255 * 2 - 1).contiguous(), self.device)

    def encode(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the VAE's distribution of an image, uint8 (H, W, 3): mean and deviation, float32 (C, h, w)."""
        mean, deviation = self._encode(image)
        return send(mean, self.device), send(deviation, self.device)

    def of_row(self, *, negative: bool) -> Tensors:
        """Return further conditioning of a row."""
        del negative
        return {}

    def calls(self, conditioning: Tensors) -> Iterator[NetCall]:
        """Yield the calls of the nets that a micro-batch has, in the order of its rows' nets."""
        # a row has less than ten nets, so their numbers sort as text
        names = sorted(name for name in conditioning if name.startswith(PREFIX) and name.endswith(_SCALE))
        for name in names:
            step, (scale, first, end) = conditioning["step_index"], conditioning[name].unbind(dim=1)
            on = (step >= first) & (step < end)
            stem = name.removesuffix(_SCALE)
            digest = stem.rpartition(":")[2]
            yield NetCall(self.cache[digest], conditioning[stem + _IMAGE], scale * on)

    # -- load ------------------------------------------------------------------------------------------------

    def _load(self, adapter: Adapter) -> torch.nn.Module:
        net = load_checked(adapter, self.net_class, self.dtype, config_of=self._config, check=self.check)
        return self.arrange(net)

    def _config(self, adapter: Adapter) -> Config:
        if adapter.path.is_file():
            return self.config_of_file(adapter)
        config = read_config(adapter.path)
        found = config.get("_class_name")
        if found != self.net_class:
            raise self.mismatch(adapter.alias, f"it is a {found}, and {self.pipeline} takes {self.net_class}")
        return config

    def config_of_file(self, adapter: Adapter) -> Config:
        """Return the config of a net in a single file.

        Raises:
            JobError: code ``adapter_invalid``: its tensors do not show it.
        """
        raise JobError(
            "adapter_invalid",
            f"controlnet {adapter.alias!r}: {adapter.path.name} has no config; use the folder with its config.json",
        )

    def check(self, alias: str, config: Mapping[str, Any]) -> None:
        """Check that a net is one of this model.

        Raises:
            JobError: code ``adapter_mismatch`` or ``adapter_invalid``.
        """
        base = completed(type(self.model), self.model.config)
        for key in self.compared:
            if config.get(key) != base.get(key):
                raise self.mismatch(alias, f"its {key} is {config.get(key)!r}, that of the model {base.get(key)!r}")

    def arrange(self, net: torch.nn.Module) -> torch.nn.Module:
        """Return a net as it is called."""
        return net

    def mismatch(self, alias: str, why: str) -> JobError:
        """Return the error of a net of another base model."""
        return JobError(
            "adapter_mismatch", f"controlnet {alias!r} is for another base model: {why}; use a net of this base"
        )
