"""Qwen3 with random weights: a byte-level tokenizer with a chat template, and a text encoder of a few layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: tokens of a prompt with its template; Z-Image pads them to 32, 64, 128 or 160
TOKENS = 160
_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
#: Qwen3's for one message: without thinking, the answer begins with an empty thought
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
#: pairs of bytes that make one token, so that words have fewer tokens than letters
_MERGES = ("i n", "in t", "Ġ a", "t h", "e r", "o n", "in g", "i m", "u s", "s e")


def write_tokenizer(folder: Path) -> None:
    """Write a Qwen2 tokenizer that knows each byte and a few merges."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    merges = [tuple(pair.split()) for pair in _MERGES]
    tokens = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        pad_token=_SPECIALS[0],
        eos_token=_SPECIALS[2],
        extra_special_tokens=[_SPECIALS[1]],
        model_max_length=TOKENS,
    )
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)


def text_encoder(kind: str, *, width: int) -> Any:
    """Return a Qwen3 model of transformers' class ``kind`` with four layers of the given width."""
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        # wide enough that prompts differ after a few layers
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=None,
    )
    return getattr(transformers, kind)(config)
