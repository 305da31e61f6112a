"""Write a diffusers folder's weights as one file, with the names that the model's authors or ComfyUI gave them.

Each writer is the inverse of diffusers' conversion (``diffusers.loaders.single_file_utils``), written from the original
code's names: CompVis' ldm, Stability's generative-models and sd3-ref, Black Forest Labs' flux, ComfyUI.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
#: pairs of a pattern and its replacement; the first that matches a name renames it
_Names = Sequence[tuple[str, str]]

UNET_PREFIX = "model.diffusion_model."
_RESNET = (("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
           ("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"))  # fmt: skip
_OPENCLIP = (("encoder.layers.", "transformer.resblocks."), ("self_attn.out_proj", "attn.out_proj"),
             ("final_layer_norm", "ln_final"), ("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"),
             ("mlp.fc2", "mlp.c_proj"),
             ("embeddings.token_embedding.weight", "token_embedding.weight"),
             ("embeddings.position_embedding.weight", "positional_embedding"))  # fmt: skip
_VAE = (("conv_norm_out", "norm_out"), ("downsamplers.0.conv", "downsample.conv"), ("conv_shortcut", "nin_shortcut"),
        ("upsamplers.0.conv", "upsample.conv"), ("mid_block.block.0", "mid.block_1"),
        ("mid_block.block.1", "mid.block_2"), ("mid_block.attentions.0", "mid.attn_1"))  # fmt: skip


def write_single_file(
    folder: Path,
    path: Path,
    kind: str,
    *,
    comfyui: bool = False,
    without: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the model in ``folder`` as one safetensors file, and return its path.

    Args:
        folder: a diffusers folder of ``tests.support.tiny``.
        path: the file.
        kind: sd1, sd2, sdxl, sd3, flux or z_image: whose layout.
        comfyui: write all parts, as ComfyUI's checkpoints do, where the authors' file has the transformer only.
        without: sub-folders that are left out.
        dtype: cast all weights to it.
        metadata: texts for the file's header.
    """
    tensors = single_file_tensors(folder, kind, comfyui=comfyui, without=without)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(tensors, path, metadata=dict(metadata or {}))
    return path


def single_file_tensors(folder: Path, kind: str, *, comfyui: bool = False, without: Sequence[str] = ()) -> Tensors:
    """Return the file's tensors by name."""
    parts = [part for part in _WRITERS[kind] if (folder / part).is_dir() and part not in without]
    if kind in {"flux", "z_image"} and not comfyui:
        parts = ["transformer"]
    found: Tensors = {}
    for part in parts:
        write, prefix = _WRITERS[kind][part]
        prefix = "" if kind in {"flux", "z_image"} and not comfyui else prefix
        for name, tensor in write(read_part(folder, part)).items():
            # copies, because a file's tensors may not share memory
            found[prefix + name] = tensor.clone().contiguous()
    return found


def read_part(folder: Path, part: str) -> Tensors:
    """Return the weights in a sub-folder."""
    found: Tensors = {}
    for file in sorted((folder / part).glob("*.safetensors")):
        found |= load_file(file)
    return found


def unet(tensors: Tensors) -> Tensors:
    """Return a U-Net's weights by the names of CompVis' ldm."""
    resnets = [re.match(r"down_blocks\.\d+\.resnets\.(\d+)", name) for name in tensors]
    layers = 1 + max(int(found[1]) for found in resnets if found)
    attended = {name.split(".")[1] for name in tensors if re.match(r"up_blocks\.\d+\.attentions", name)}
    return {_unet_name(name, layers, attended): tensor for name, tensor in tensors.items()}


def _unet_name(name: str, layers: int, attended: set[str]) -> str:
    words = name.split(".")
    if words[0] in {"down_blocks", "up_blocks"}:
        block, kind, index, rest = int(words[1]), words[2], int(words[3]), ".".join(words[4:])
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{words[-1]}"
        if kind == "upsamplers":
            return f"output_blocks.{block * (layers + 1) + layers}.{1 + (words[1] in attended)}.conv.{words[-1]}"
        at = f"input_blocks.{1 + block * (layers + 1) + index}"
        if words[0] == "up_blocks":
            at = f"output_blocks.{block * (layers + 1) + index}"
        return f"{at}.1.{rest}" if kind == "attentions" else f"{at}.0.{_replaced(rest, _RESNET)}"
    if words[0] == "mid_block":
        rest = ".".join(words[3:])
        return f"middle_block.1.{rest}" if words[1] == "attentions" else (
            f"middle_block.{2 * int(words[2])}.{_replaced(rest, _RESNET)}"
        )  # fmt: skip
    names = (("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
             ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
             ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"))  # fmt: skip
    return _replaced(name, names)


def vae(tensors: Tensors) -> Tensors:
    """Return a VAE's weights by the names of CompVis' ldm: its attention's projections are convolutions."""
    blocks = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("decoder.up_blocks"))
    found = {}
    for name, tensor in tensors.items():
        renamed = re.sub(r"decoder\.up_blocks\.(\d+)", lambda at: f"decoder.up.{blocks - 1 - int(at[1])}", name)
        renamed = _replaced(renamed.replace("down_blocks.", "down.").replace("resnets.", "block."), _VAE)
        for projection, short in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            renamed = renamed.replace(f"attn_1.{projection}.", f"attn_1.{short}.")
        renamed = renamed.replace("attn_1.group_norm", "attn_1.norm")
        is_projection = ".attn_1." in renamed and renamed.endswith(".weight") and tensor.ndim == 2
        found[renamed] = tensor[:, :, None, None] if is_projection else tensor
    return found


def clip(tensors: Tensors) -> Tensors:
    """Return a CLIP text encoder's weights by the names of transformers 4, which the original files have."""
    wrapped = any(name.startswith("text_model.") for name in tensors)
    return tensors if wrapped else {f"text_model.{name}": tensor for name, tensor in tensors.items()}


def openclip(tensors: Tensors) -> Tensors:
    """Return a CLIP text encoder's weights by OpenCLIP's names: queries, keys and values in one matrix."""
    found: Tensors = {}
    for name, tensor in clip(tensors).items():
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T
        elif found_at := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            rows = [clip(tensors)[name.replace("q_proj", each)] for each in ("q_proj", "k_proj", "v_proj")]
            found[f"transformer.resblocks.{found_at[1]}.attn.in_proj_{found_at[2]}"] = torch.cat(rows)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            renamed = name.removeprefix("text_model.")
            for old, new in _OPENCLIP:
                renamed = renamed.replace(old, new)
            found[renamed] = tensor
    return found


def openclip_with_another_layer(tensors: Tensors) -> Tensors:
    """Return OpenCLIP's names and one layer more, as in Stable Diffusion 2, which does not use the last."""
    found = openclip(tensors)
    layers = 1 + max(int(name.split(".")[2]) for name in found if name.startswith("transformer.resblocks."))
    last = {name: tensor for name, tensor in found.items() if name.startswith(f"transformer.resblocks.{layers - 1}.")}
    return found | {name.replace(f".{layers - 1}.", f".{layers}.", 1): tensor + 1 for name, tensor in last.items()}


def sd3(tensors: Tensors) -> Tensors:
    """Return a transformer's weights by the names of Stability's sd3-ref."""
    last = max(int(name.split(".")[1]) for name in tensors if name.startswith("transformer_blocks."))
    joint = r"transformer_blocks\.(\d+)\."
    names = [
        (r"pos_embed\.pos_embed", "pos_embed"),
        (r"pos_embed\.proj", "x_embedder.proj"),
        (r"time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
        (r"time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
        (r"time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
        (r"time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
        (rf"{joint}attn\.norm_added_([qk])", r"joint_blocks.\1.context_block.attn.ln_\2"),
        (rf"{joint}(attn2?)\.norm_([qk])", r"joint_blocks.\1.x_block.\2.ln_\3"),
        (rf"{joint}(attn2?)\.to_out\.0", r"joint_blocks.\1.x_block.\2.proj"),
        (rf"{joint}attn\.to_add_out", r"joint_blocks.\1.context_block.attn.proj"),
        (rf"{joint}norm1\.linear", r"joint_blocks.\1.x_block.adaLN_modulation.1"),
        (rf"{joint}norm1_context\.linear", r"joint_blocks.\1.context_block.adaLN_modulation.1"),
        (rf"{joint}ff\.net\.0\.proj", r"joint_blocks.\1.x_block.mlp.fc1"),
        (rf"{joint}ff\.net\.2", r"joint_blocks.\1.x_block.mlp.fc2"),
        (rf"{joint}ff_context\.net\.0\.proj", r"joint_blocks.\1.context_block.mlp.fc1"),
        (rf"{joint}ff_context\.net\.2", r"joint_blocks.\1.context_block.mlp.fc2"),
        (r"norm_out\.linear", "final_layer.adaLN_modulation.1"),
        (r"proj_out", "final_layer.linear"),
    ]
    fused = {
        rf"{joint}(attn2?)\.to_q": (r"joint_blocks.\1.x_block.\2.qkv", ("to_q", "to_k", "to_v")),
        rf"{joint}attn\.add_q_proj": (
            r"joint_blocks.\1.context_block.attn.qkv",
            ("add_q_proj", "add_k_proj", "add_v_proj"),
        ),
    }
    # the last layer's norm of the text and the final one have shift and scale in the other order
    swapped = (f"transformer_blocks.{last}.norm1_context.linear", "norm_out.linear")
    return _transformer(tensors, names, fused, swapped)


def flux(tensors: Tensors) -> Tensors:
    """Return a transformer's weights by the names of Black Forest Labs' flux."""
    double, single = r"transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\."
    names = [
        (r"time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
        (r"time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
        (r"time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
        (r"time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
        (r"time_text_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
        (r"time_text_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
        (r"context_embedder", "txt_in"),
        (r"x_embedder", "img_in"),
        (rf"{double}norm1\.linear", r"double_blocks.\1.img_mod.lin"),
        (rf"{double}norm1_context\.linear", r"double_blocks.\1.txt_mod.lin"),
        (rf"{double}attn\.norm_q\.weight", r"double_blocks.\1.img_attn.norm.query_norm.scale"),
        (rf"{double}attn\.norm_k\.weight", r"double_blocks.\1.img_attn.norm.key_norm.scale"),
        (rf"{double}attn\.norm_added_q\.weight", r"double_blocks.\1.txt_attn.norm.query_norm.scale"),
        (rf"{double}attn\.norm_added_k\.weight", r"double_blocks.\1.txt_attn.norm.key_norm.scale"),
        (rf"{double}ff\.net\.0\.proj", r"double_blocks.\1.img_mlp.0"),
        (rf"{double}ff\.net\.2", r"double_blocks.\1.img_mlp.2"),
        (rf"{double}ff_context\.net\.0\.proj", r"double_blocks.\1.txt_mlp.0"),
        (rf"{double}ff_context\.net\.2", r"double_blocks.\1.txt_mlp.2"),
        (rf"{double}attn\.to_out\.0", r"double_blocks.\1.img_attn.proj"),
        (rf"{double}attn\.to_add_out", r"double_blocks.\1.txt_attn.proj"),
        (rf"{single}norm\.linear", r"single_blocks.\1.modulation.lin"),
        (rf"{single}attn\.norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
        (rf"{single}attn\.norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
        (rf"{single}proj_out", r"single_blocks.\1.linear2"),
        (r"norm_out\.linear", "final_layer.adaLN_modulation.1"),
        (r"proj_out", "final_layer.linear"),
    ]
    qkv = ("to_q", "to_k", "to_v")
    fused = {
        rf"{single}attn\.to_q": (r"single_blocks.\1.linear1", (*(f"attn.{each}" for each in qkv), "proj_mlp")),
        rf"{double}attn\.to_q": (r"double_blocks.\1.img_attn.qkv", qkv),
        rf"{double}attn\.add_q_proj": (
            r"double_blocks.\1.txt_attn.qkv",
            ("add_q_proj", "add_k_proj", "add_v_proj"),
        ),
    }
    return _transformer(tensors, names, fused, ("norm_out.linear",))


def z_image(tensors: Tensors) -> Tensors:
    """Return a transformer's weights by the names of ComfyUI's Z-Image files."""
    names = [
        (r"all_final_layer\.2-1\.(.*)", r"final_layer.\1"),
        (r"all_x_embedder\.2-1\.(.*)", r"x_embedder.\1"),
        (r"(.*)\.attention\.to_out\.0", r"\1.attention.out"),
        (r"(.*)\.attention\.norm_([qk])", r"\1.attention.\2_norm"),
    ]
    fused = {r"(.*)\.attention\.to_q": (r"\1.attention.qkv", ("to_q", "to_k", "to_v"))}
    return _transformer(tensors, names, fused, ())


def _transformer(
    tensors: Tensors,
    names: _Names,
    fused: Mapping[str, tuple[str, Sequence[str]]],
    swapped: Sequence[str],
) -> Tensors:
    """Rename the weights, join those of ``fused``, and swap the halves of ``swapped``. ``fused`` comes first."""
    found, taken = {}, set()
    for pattern, (new, kinds) in fused.items():
        for name in tensors:
            stem, _, kind = name.rpartition(".")
            if re.fullmatch(pattern, stem):
                others = [stem.removesuffix(kinds[0]) + each + "." + kind for each in kinds]
                taken.update(others)
                found[f"{re.sub(pattern, new, stem)}.{kind}"] = torch.cat([tensors[each] for each in others])
    for name, tensor in tensors.items():
        if name in taken:
            continue
        if name.rpartition(".")[0] in swapped:
            tensor = torch.cat(tensor.chunk(2)[::-1])  # noqa: PLW2901
        found[_renamed(name, names)] = tensor
    return found


def _renamed(name: str, names: _Names) -> str:
    stem, _, kind = name.rpartition(".")
    for pattern, new in names:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, new, name)
        if re.fullmatch(pattern, stem):
            return f"{re.sub(pattern, new, stem)}.{kind}"
    return name


def _replaced(text: str, names: _Names) -> str:
    for old, new in names:
        if old in text:
            return text.replace(old, new)
    return text


def _same(tensors: Tensors) -> Tensors:
    return tensors


#: by kind of the layout and sub-folder: the writer of its weights, and the prefix of their names
_WRITERS: Mapping[str, Mapping[str, tuple[Callable[[Tensors], Tensors], str]]] = {
    "sd1": {
        "unet": (unet, UNET_PREFIX),
        "vae": (vae, "first_stage_model."),
        "text_encoder": (clip, "cond_stage_model.transformer."),
    },
    "sd2": {
        "unet": (unet, UNET_PREFIX),
        "vae": (vae, "first_stage_model."),
        "text_encoder": (openclip_with_another_layer, "cond_stage_model.model."),
    },
    "sdxl": {
        "unet": (unet, UNET_PREFIX),
        "vae": (vae, "first_stage_model."),
        "text_encoder": (clip, "conditioner.embedders.0.transformer."),
        "text_encoder_2": (openclip, "conditioner.embedders.1.model."),
    },
    "sd3": {
        "transformer": (sd3, UNET_PREFIX),
        "vae": (vae, "first_stage_model."),
        "text_encoder": (clip, "text_encoders.clip_l.transformer."),
        "text_encoder_2": (clip, "text_encoders.clip_g.transformer."),
        "text_encoder_3": (_same, "text_encoders.t5xxl.transformer."),
    },
    "flux": {
        "transformer": (flux, UNET_PREFIX),
        "vae": (vae, "vae."),
        "text_encoder": (clip, "text_encoders.clip_l.transformer."),
        "text_encoder_2": (_same, "text_encoders.t5xxl.transformer."),
    },
    "z_image": {
        "transformer": (z_image, UNET_PREFIX),
        "vae": (vae, "vae."),
        "text_encoder": (_same, "text_encoders.qwen3_4b.transformer."),
    },
}
