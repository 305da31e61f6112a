"""The numbers of a config that follow from the shapes of a file's tensors: channels, widths, layers. No torch.

Names are those in the file, without the part's prefix. A function returns what shapes show, and nothing else: so a
config with it stays right in the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
_Config = dict[str, Any]


def count(shapes: Shapes, pattern: str) -> int:
    """Return one more than the largest number in a group of names; 0 if none matches."""
    found = (re.match(pattern, name) for name in shapes)
    return max((int(each[1]) + 1 for each in found if each), default=0)


def unet(shapes: Shapes) -> _Config:
    """Return the sizes of a U-Net in ldm's names, as UNet2DConditionModel's."""
    blocks: list[list[int]] = [[]]
    for index in range(1, count(shapes, r"input_blocks\.(\d+)\.")):
        if f"input_blocks.{index}.0.op.weight" in shapes:
            blocks.append([])
        else:
            blocks[-1].append(index)
    channels = [shapes[f"input_blocks.{block[0]}.0.out_layers.3.weight"][0] for block in blocks]
    depths = [count(shapes, rf"input_blocks\.{block[0]}\.1\.transformer_blocks\.(\d+)\.") for block in blocks]
    projections = [shape for name, shape in shapes.items() if name.endswith("1.proj_in.weight")]
    contexts = [shape for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")]
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": len(blocks[0]),
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "transformer_layers_per_block": [depth or 1 for depth in depths],
        "cross_attention_dim": contexts[0][1],
        "use_linear_projection": len(projections[0]) == 2,
        **(
            {"projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1]}
            if "label_emb.0.0.weight" in shapes
            else {}
        ),
    }


def vae(shapes: Shapes) -> _Config:
    """Return the sizes of a VAE in ldm's names, as AutoencoderKL's."""
    blocks = count(shapes, r"encoder\.down\.(\d+)\.") or count(shapes, r"decoder\.up\.(\d+)\.")
    return {
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": [shapes[f"decoder.up.{at}.block.0.conv2.weight"][0] for at in range(blocks)],
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "layers_per_block": count(shapes, r"decoder\.up\.0\.block\.(\d+)\.") - 1,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def clip(shapes: Shapes) -> _Config:
    """Return the sizes of a CLIP text encoder in transformers' names, as CLIPTextConfig's."""
    bare = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    vocabulary, width = bare["embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": bare["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": count(bare, r"encoder\.layers\.(\d+)\."),
    }


def openclip(shapes: Shapes) -> _Config:
    """Return the sizes of a CLIP text encoder in OpenCLIP's names, as CLIPTextConfig's."""
    vocabulary, width = shapes["token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": count(shapes, r"transformer\.resblocks\.(\d+)\."),
        **({"projection_dim": shapes["text_projection"][1]} if "text_projection" in shapes else {}),
    }


def openclip_without_last(shapes: Shapes) -> _Config:
    """Return the sizes of Stable Diffusion 2's text encoder, whose last layer and projection are not used."""
    sizes = openclip(shapes)
    sizes.pop("projection_dim", None)
    return {**sizes, "num_hidden_layers": sizes["num_hidden_layers"] - 1}


def t5(shapes: Shapes) -> _Config:
    """Return the sizes of a T5 encoder in transformers' names, as T5Config's."""
    vocabulary, width = shapes["shared.weight"]
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        "num_layers": count(shapes, r"encoder\.block\.(\d+)\."),
    }


def sd3(shapes: Shapes) -> _Config:
    """Return the sizes of a transformer in sd3-ref's names, as SD3Transformer2DModel's."""
    dual = {int(found[1]) for name in shapes if (found := re.match(r"joint_blocks\.(\d+)\.x_block\.attn2\.", name))}
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    return {
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": count(shapes, r"joint_blocks\.(\d+)\."),
        "num_attention_heads": width,
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": sorted(dual),
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


def flux(shapes: Shapes) -> _Config:
    """Return the sizes of a transformer in flux's names, as FluxTransformer2DModel's."""
    return {**flux2(shapes), "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1]}


def flux2(shapes: Shapes) -> _Config:
    """Return the sizes of a transformer in FLUX.2's names, as Flux2Transformer2DModel's."""
    width, channels = shapes["img_in.weight"]
    return {
        "in_channels": channels,
        "num_layers": count(shapes, r"double_blocks\.(\d+)\."),
        "num_single_layers": count(shapes, r"single_blocks\.(\d+)\."),
        "attention_head_dim": shapes["double_blocks.0.img_attn.norm.key_norm.scale"][0],
        "num_attention_heads": width,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
    }


def z_image(shapes: Shapes) -> _Config:
    """Return the sizes of a transformer in Z-Image's names, as ZImageTransformer2DModel's."""
    embedder = shapes.get("x_embedder.weight") or shapes["all_x_embedder.2-1.weight"]
    return {
        "in_channels": embedder[1] // 4,
        "dim": embedder[0],
        "n_layers": count(shapes, r"layers\.(\d+)\."),
        "n_refiner_layers": count(shapes, r"noise_refiner\.(\d+)\."),
        "cap_feat_dim": shapes["cap_embedder.0.weight"][0],
    }


#: by family and sub-folder; the same functions read the parts of all families
READERS: Mapping[str, Mapping[str, Callable[[Shapes], _Config]]] = {
    "sd1": {"unet": unet, "vae": vae, "text_encoder": clip},
    "sd2": {"unet": unet, "vae": vae, "text_encoder": openclip_without_last},
    "sdxl": {"unet": unet, "vae": vae, "text_encoder": clip, "text_encoder_2": openclip},
    "sd3": {"transformer": sd3, "vae": vae, "text_encoder": clip, "text_encoder_2": clip, "text_encoder_3": t5},
    "flux": {"transformer": flux, "vae": vae, "text_encoder": clip, "text_encoder_2": t5},
    "flux2": {"transformer": flux2},
    "z_image": {"transformer": z_image, "vae": vae},
}


def complete(config: _Config, sizes: _Config) -> _Config:
    """Return a config with the sizes that a file's tensors have. Numbers of heads follow from widths."""
    found = {**config, **sizes}
    if "block_out_channels" in sizes and "cross_attention_dim" in sizes:
        found["attention_head_dim"] = _heads(config, sizes["block_out_channels"])
        found["transformer_layers_per_block"] = sizes["transformer_layers_per_block"]
    elif "num_attention_heads" in sizes:
        # the entry is the width, until the size of a head is known
        found["num_attention_heads"] = sizes["num_attention_heads"] // found.get("attention_head_dim", 64)
    elif "dim" in sizes:
        head = config.get("dim", 3840) // config.get("n_heads", 30)
        found["n_heads"] = found["n_kv_heads"] = sizes["dim"] // head
    return found


def _heads(config: _Config, channels: list[int]) -> Any:
    """Return a U-Net's heads by level: those of the config, or 64 channels a head where it has other levels."""
    heads = config.get("attention_head_dim", 8)
    if isinstance(heads, int) or len(heads) == len(channels):
        return heads
    return [each // 64 for each in channels]
