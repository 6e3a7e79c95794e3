"""Small causal language models with a tokenizer, as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from coverage.architectures import liven

TEXT = """The quick brown fox jumps over the lazy dog, and the dog sleeps on.
A fox that jumps is a fox that lives: the dog knows, and the dog does not care.
Ünïcödé tëxt, 日本語 and 😀 have characters of many bytes."""
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 160}  # fmt: skip
GROUPED: dict[str, Any] = SIZES | {"num_key_value_heads": 2}
WINDOW = 8


def tokenizer(*, merges: int = 40) -> tokenizers.Tokenizer:
    """A byte-level BPE trained on a few lines, with a token before each text."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=258 + merges,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXT.splitlines(), trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return made


def model(kind: str, vocabulary: int = 298) -> transformers.PreTrainedModel:
    """A model with weights that depend on its kind alone, and whose every part matters."""
    marks = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    torch.manual_seed(sum(map(ord, kind)))
    made: transformers.PreTrainedModel = MODELS[kind](marks)
    liven(made)
    return made.eval()


def _gpt2(marks: dict[str, Any]) -> transformers.PreTrainedModel:
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 160}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **marks))


def _llama(marks: dict[str, Any]) -> transformers.PreTrainedModel:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, **marks))


def _mistral(marks: dict[str, Any]) -> transformers.PreTrainedModel:
    config = transformers.MistralConfig(**GROUPED, **marks, sliding_window=WINDOW)
    return transformers.MistralForCausalLM(config)


def _qwen2(marks: dict[str, Any]) -> transformers.PreTrainedModel:
    windows = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**GROUPED, **marks, **windows))


def _gemma2(marks: dict[str, Any]) -> transformers.PreTrainedModel:
    more = {"sliding_window": WINDOW, "head_dim": 8, "attn_logit_softcapping": 2.0}
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**GROUPED, **marks, **more))


MODELS = {"llama": _llama, "gpt2": _gpt2, "mistral": _mistral, "qwen2": _qwen2, "gemma2": _gemma2}


def write_folder(kind: str, folder: Path) -> Path:
    """Weights, configuration and tokenizer of a kind."""
    model(kind).save_pretrained(folder)
    words = {"bos_token": "<s>", "eos_token": "</s>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer(), **words)
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    fast.save_pretrained(folder)
    return folder
