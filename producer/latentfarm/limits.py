"""The limits and defaults of a job's fields, and the size of a part."""

from __future__ import annotations

#: jobs in one part of the manifest and of the results
PART_JOBS = 1_000
#: bytes of UTF-8 in one prompt
MAX_PROMPT_BYTES = 4096
#: pixels of an image's side; 8 is the VAE's downsampling
MIN_SIDE, MAX_SIDE, SIDE_MULTIPLE = 64, 2048, 8
#: tokens in one window of CLIP, start and end included
MAX_TOKENS = 77
MAX_STEPS = 500
MAX_GUIDANCE = 100.0
#: layers of a text encoder that may be skipped; Stable Diffusion 2's, the deepest, has 23
MAX_CLIP_SKIP = 22
MAX_PARTIAL_IMAGES = 3
MAX_SEED = 2**63 - 1
MAX_IMAGES_PER_PROMPT = 10_000
#: entries in ``scheduler_options``, and their bytes as JSON
MAX_SCHEDULER_OPTIONS, MAX_OPTIONS_BYTES = 16, 4096
#: columns of a row that are copied to its results unread, and their bytes as JSON
MAX_COLUMNS, MAX_COLUMNS_BYTES = 64, 16_384

DEFAULT_STEPS = 25
DEFAULT_GUIDANCE = 7.5

#: LoRAs, ControlNets and image prompts of one job
MAX_LORAS, MAX_CONTROLNETS, MAX_IMAGE_PROMPTS = 8, 4, 4
#: the largest scale of a LoRA, a ControlNet or an image prompt; a LoRA's may be negative
MAX_ADAPTER_SCALE = 10.0
#: pixels of the blur of a mask
MAX_MASK_BLUR = 64
#: how often the sides of an image fit into those of its second stage
MAX_HIRES_SCALE = 4.0
#: scorers of one job
MAX_SCORERS = 8
#: characters of an adapter's name
MAX_ADAPTER_NAME = 128

#: bytes of the file of an input image, its pixels, and pixels of its side
MAX_INPUT_BYTES, MAX_INPUT_PIXELS, MAX_INPUT_SIDE = 50 * 2**20, 50_000_000, 16_384
