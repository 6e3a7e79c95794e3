"""`Llama` as a folder of Hugging Face's `LlamaForCausalLM` and back, weights unchanged."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdk.errors import InputError
from sdk.recipes.data.tokens import END
from sdk.recipes.models.llama import Llama, LlamaSize

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class Saved:
    """A model in a folder: its weights and its tokenizer, as the `tokenizers` library writes it."""

    model: Llama
    tokenizer: str


def save_folder(saved: Saved, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write the folder; one that is there is replaced as a whole."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    size = saved.model.size
    weights = {name: tensor.detach().to(dtype).contiguous() for name, tensor in _stored(saved)}
    save_file(weights, part / WEIGHTS, metadata={"format": "pt"})
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    _write(part / CONFIG, config(size, str(dtype).removeprefix("torch.")) | ends)
    _write(part / "generation_config.json", ends)
    _write(part / "tokenizer_config.json", _tokenizer_config(size))
    _write(part / "special_tokens_map.json", dict.fromkeys(("bos_token", "eos_token"), END))
    (part / TOKENIZER).write_text(saved.tokenizer)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder


def load_folder(folder: str | Path) -> Saved:
    """The model of a folder; InputError where it is none of this kind."""
    folder = Path(folder)
    try:
        size = _size(json.loads((folder / CONFIG).read_text()))
        weights = load_file(folder / WEIGHTS)
        model = Llama(size)
        if size.tied:
            weights.setdefault(HEAD, weights[EMBEDDING])
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        tokenizer = (folder / TOKENIZER).read_text()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{folder} is no folder of a Llama model that this module reads.",
            expected=f"{CONFIG} of a LlamaForCausalLM with plain rotary positions, {WEIGHTS} and "
            f"{TOKENIZER}",
            got=f"{type(error).__name__}: {str(error)[:300]}",
        ) from error
    return Saved(model.eval(), tokenizer)


def config(size: LlamaSize, dtype: str = "float32") -> dict[str, Any]:
    """What `config.json` says of the sizes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": size.vocabulary,
        "hidden_size": size.width,
        "intermediate_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head,
        "max_position_embeddings": size.context,
        "rms_norm_eps": size.eps,
        "rope_theta": size.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": size.theta},
        "tie_word_embeddings": size.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _size(found: dict[str, Any]) -> LlamaSize:
    """The sizes in a `config.json`; ValueError where it asks for what `Llama` has not."""
    rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
    plain = {
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": found["hidden_size"] // found["num_attention_heads"],
    }
    for name, value in plain.items():
        if found.get(name, value) != value:
            raise ValueError(f"{name} is {found[name]!r}, not {value!r}")
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"rotary positions of the kind {rope['rope_type']!r}")
    return LlamaSize(
        vocabulary=found["vocab_size"],
        width=found["hidden_size"],
        layers=found["num_hidden_layers"],
        heads=found["num_attention_heads"],
        kv_heads=found.get("num_key_value_heads", found["num_attention_heads"]),
        hidden=found["intermediate_size"],
        context=found["max_position_embeddings"],
        tied=found.get("tie_word_embeddings", False),
        theta=float(rope.get("rope_theta") or found.get("rope_theta") or 10000.0),
        eps=found["rms_norm_eps"],
    )


def _stored(saved: Saved) -> list[tuple[str, Tensor]]:
    tied = saved.model.size.tied
    return [(n, t) for n, t in saved.model.state_dict().items() if not (tied and n == HEAD)]


def _tokenizer_config(size: LlamaSize) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": size.context,
    }


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n")
