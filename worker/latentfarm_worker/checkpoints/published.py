"""What the published configs of the families say and tensors do not: heads, activations, scales, noise schedules.

A single file has no configs. Those of its base are preferred; these are for a base with tokenizers only. Each entry is
from the config.json files of the repository in ``USUAL_BASES``. There is none for the text encoders that are never in
a single file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: by family: its pipeline in diffusers
PIPELINES: Mapping[str, str] = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "flux2": "Flux2KleinPipeline",
    "z_image": "ZImagePipeline",
}
#: all pipelines that workers render: those of the models above, and of folders only
SERVED = frozenset(
    {
        *PIPELINES.values(),
        "ChromaPipeline",
        "PixArtSigmaPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionXLInpaintPipeline",
    }
)
#: by family: the hub id whose tokenizers, configs and missing parts fit
USUAL_BASES: Mapping[str, str] = {
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "stabilityai/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd3": "stabilityai/stable-diffusion-3.5-medium",
    "flux": "black-forest-labs/FLUX.1-dev",
    "schnell": "black-forest-labs/FLUX.1-schnell",
    "flux2": "black-forest-labs/FLUX.2-klein-4B",
    "z_image": "Tongyi-MAI/Z-Image-Turbo",
}
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
_FLUX_SHIFTS = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
_CLIP = {"max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1,
         "layer_norm_eps": 1e-05}  # fmt: skip
_CLIP_L = {**_CLIP, "hidden_act": "quick_gelu", "num_attention_heads": 12, "projection_dim": 768}
_CLIP_G = {**_CLIP, "hidden_act": "gelu", "num_attention_heads": 20, "projection_dim": 1280}
_T5_XXL = {"d_kv": 64, "num_heads": 64, "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32,
           "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-06, "tie_word_embeddings": False,
           "is_encoder_decoder": False, "use_cache": False}  # fmt: skip
_VAE_16 = {"force_upcast": True, "sample_size": 1024}

#: by family and sub-folder
CONFIGS: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "sd1": {
        "scheduler": {
            "_class_name": "PNDMScheduler",
            **_BETAS,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
        },
        "unet": {"sample_size": 64, "attention_head_dim": 8},
        "vae": {"sample_size": 512, "scaling_factor": 0.18215},
        "text_encoder": _CLIP_L,
    },
    "sd2": {
        "scheduler": {
            "_class_name": "DDIMScheduler",
            **_BETAS,
            "clip_sample": False,
            "prediction_type": "v_prediction",
            "set_alpha_to_one": False,
            "steps_offset": 1,
        },
        "unet": {"sample_size": 96, "attention_head_dim": [5, 10, 20, 20], "upcast_attention": True},
        "vae": {"sample_size": 768, "scaling_factor": 0.18215},
        "text_encoder": {**_CLIP, "hidden_act": "gelu", "num_attention_heads": 16, "projection_dim": 512},
    },
    "sdxl": {
        "model_index": {"force_zeros_for_empty_prompt": True},
        "scheduler": {
            "_class_name": "EulerDiscreteScheduler",
            **_BETAS,
            "interpolation_type": "linear",
            "prediction_type": "epsilon",
            "steps_offset": 1,
            "timestep_spacing": "leading",
        },
        "unet": {
            "sample_size": 128,
            "attention_head_dim": [5, 10, 20],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
        },
        "vae": {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_G,
    },
    "sd3": {
        "scheduler": {**_FLOW, "shift": 3.0},
        "transformer": {"sample_size": 128, "patch_size": 2, "attention_head_dim": 64},
        "vae": {**_VAE_16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_G,
        "text_encoder_3": _T5_XXL,
    },
    "flux": {
        "scheduler": {**_FLOW, **_FLUX_SHIFTS, "shift": 3.0, "use_dynamic_shifting": True},
        "transformer": {"patch_size": 1, "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56]},
        "vae": {**_VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _T5_XXL,
    },
    "schnell": {
        "scheduler": {**_FLOW, **_FLUX_SHIFTS, "shift": 1.0, "use_dynamic_shifting": False},
    },
    "flux2": {"transformer": {"attention_head_dim": 128}},
    "z_image": {
        "transformer": {},
        "vae": {**_VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
    },
}

#: tokens of CLIP's text encoders, OpenAI's and OpenCLIP's
CLIP_VOCABULARY = 49_408
#: by family and tokenizer, the token that fills a prompt; only of families all of whose tokenizers are CLIP's, or
#: optional
CLIP_PADDING: Mapping[str, Mapping[str, str]] = {
    "sd1": {"tokenizer": "<|endoftext|>"},
    "sd2": {"tokenizer": "!"},
    "sdxl": {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"},
    "sd3": {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"},
}
