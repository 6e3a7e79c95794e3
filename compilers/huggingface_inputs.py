"""Example inputs for a model of `transformers`, and which of their sizes may vary.

What a forward takes is read off its parameters; how large it is, off the configuration. Values are
drawn from seed 0: token ids over the vocabulary with a padded end, normal pixels and waves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdk.compilers.dims import Proposed
from sdk.compilers.huggingface_files import read_json
from sdk.errors import InputError
from sdk.signature import Array, Dim

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

MAX_BATCH = 8
MAX_TOKENS = 512
TOKENS = 16
RATE = 16_000  # samples a second of the speech models
IMAGE_SIDE = 224
Axes = dict[int, Dim]
Input = tuple[Array, Axes]


@dataclass(frozen=True)
class Facts:
    """What the makers below read: the model, its configuration, its folder's preprocessor."""

    model: PreTrainedModel
    config: PretrainedConfig
    preprocessor: Mapping[str, Any]
    rng: np.random.Generator


def propose(model: PreTrainedModel, folder: Path | None) -> tuple[dict[str, Array], Proposed]:
    """Named example inputs of batch 1, and input -> axis -> Dim; InputError where it is unknown.

    The dims are proposals: a size that the model itself fixes stays fixed.
    """
    preprocessor = {} if folder is None else read_json(folder, "preprocessor_config.json")
    facts = Facts(model, model.config, preprocessor, np.random.default_rng(0))
    made = {name: MAKERS[name](facts) for name in _wanted(model)}
    inputs = {name: array for name, (array, _) in made.items()}
    return inputs, Proposed({name: axes for name, (_, axes) in made.items()})


def _wanted(model: PreTrainedModel) -> list[str]:
    """The inputs that the model's task needs, in forward's order."""
    config = model.config
    takes = [
        n
        for n, p in inspect.signature(model.forward).parameters.items()
        if p.kind is not p.VAR_KEYWORD
    ]
    wanted = {model.main_input_name}
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        wanted |= {"input_ids", "pixel_values"}
    if "input_ids" in wanted or _masks_audio(config, wanted):
        wanted.add("attention_mask")
    if config.is_encoder_decoder:
        wanted.add("decoder_input_ids")
    names = [name for name in takes if name in wanted]
    if not set(names) <= set(MAKERS) or model.main_input_name not in names or _placed(config):
        raise InputError(
            f"No example inputs are known for {type(model).__name__}.",
            expected=f"inputs among {', '.join(MAKERS)}",
            got=", ".join(takes),
            fix="pass inputs={name: tensor}",
        )
    return names


def _placed(config: PretrainedConfig) -> bool:
    """Whether text has places for pictures or sounds, whose number only the processor knows."""
    return any(
        getattr(config, f"{kind}_token_{what}", None) is not None
        for kind in ("image", "audio", "video")
        for what in ("id", "index")
    )


def _masks_audio(config: PretrainedConfig, wanted: set[str]) -> bool:
    """Whether a model of waves was trained with a mask: one with layer norms at the front was."""
    return "input_values" in wanted and getattr(config, "feat_extract_norm", None) == "layer"


def _tokens(facts: Facts, axis: str, config: PretrainedConfig) -> Input:
    limit = min(MAX_TOKENS, longest(facts.model, config))
    length = min(TOKENS, limit)
    ids = ordinary(facts.rng, config, length)
    return ids, {0: batch(), 1: Dim(axis, 1, length, limit)}


def ordinary(rng: np.random.Generator, config: PretrainedConfig, length: int) -> Array:
    """Token ids that stand for text: none that begins, ends or fills one."""
    special = {getattr(config, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos")}
    flat = {x for item in special for x in (item if isinstance(item, list) else [item])}
    allowed = np.array([i for i in range(min(config.vocab_size, 1 << 17)) if i not in flat])
    return rng.choice(allowed, (1, length)).astype(np.int64)


def longest(model: PreTrainedModel, config: PretrainedConfig) -> int:
    """Tokens that the positions reach; embeddings with a padding row count behind it.

    Where nothing bounds them, as many as models are tried with.
    """
    names = ("max_position_embeddings", "n_positions", "max_target_positions")
    limit = next(
        (getattr(config, n) for n in names if isinstance(getattr(config, n, None), int)), 0
    )
    offsets = [
        int(module.padding_idx) + 1
        for name, module in model.named_modules()
        if "position" in name and isinstance(getattr(module, "padding_idx", None), int)
    ]
    return max(1, (limit or MAX_TOKENS) - max(offsets, default=0))


def _text_config(facts: Facts, *, decoder: bool) -> PretrainedConfig:
    """The part of the configuration that reads text, or that writes it."""
    config = facts.config
    return (
        config.get_text_config(decoder=True)
        if decoder and config.is_encoder_decoder
        else config.get_text_config()
    )


def _input_ids(facts: Facts) -> Input:
    return _tokens(facts, "sequence", _text_config(facts, decoder=False))


def _decoder_input_ids(facts: Facts) -> Input:
    return _tokens(facts, "decoder_sequence", _text_config(facts, decoder=True))


def _attention_mask(facts: Facts) -> Input:
    """Ones with a padded end, as long as the ids or the wave."""
    values, axes = MAKERS[facts.model.main_input_name if _is_audio(facts) else "input_ids"](facts)
    mask = np.ones(values.shape, np.int64)
    length = values.shape[-1]
    mask[:, length - length // 4 :] = 0
    return mask, axes


def _is_audio(facts: Facts) -> bool:
    return bool(facts.model.main_input_name == "input_values")


def _pixel_values(facts: Facts) -> Input:
    vision = getattr(facts.config, "vision_config", None) or facts.config
    channels = getattr(vision, "num_channels", 3)
    shape = (1, channels, *_image_size(facts, vision))
    return picture(facts.rng, shape), {
        0: batch("images" if vision is not facts.config else "batch")
    }


def picture(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Coarse patches under fine noise: of noise alone, what pools would see only the mean."""
    *lead, height, width = shape
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 2 // width
    coarse = rng.standard_normal((*lead, 2, 2))[..., rows, :][..., columns]
    return (coarse + 0.3 * rng.standard_normal(shape)).astype(np.float32)


def _image_size(facts: Facts, vision: PretrainedConfig) -> tuple[int, int]:
    """Height and width: of the configuration, else of what the preprocessor makes."""
    asked = getattr(vision, "image_size", None)
    for size in (asked, facts.preprocessor.get("crop_size"), facts.preprocessor.get("size")):
        if isinstance(size, int):
            return size, size
        if isinstance(size, (list, tuple)) and len(size) == 2:
            return int(size[0]), int(size[1])
        if isinstance(size, dict) and {"height", "width"} <= size.keys():
            return int(size["height"]), int(size["width"])
    return IMAGE_SIDE, IMAGE_SIDE


def _input_values(facts: Facts) -> Input:
    """A second of sound, or a spectrogram of the one length that the model takes."""
    config = facts.config
    if not hasattr(config, "conv_kernel"):
        return _normal(facts, (1, config.max_length, config.num_mel_bins)), {0: batch()}
    field = 1
    for kernel, stride in zip(
        reversed(config.conv_kernel), reversed(config.conv_stride), strict=True
    ):
        field = (field - 1) * stride + kernel
    return _normal(facts, (1, RATE)), {0: batch(), 1: Dim("samples", field, RATE, 30 * RATE)}


def _input_features(facts: Facts) -> Input:
    """Mel spectrograms of the encoder's one length."""
    config = facts.config
    frames = 2 * config.max_source_positions
    return _normal(facts, (1, config.num_mel_bins, frames)), {0: batch()}


def _normal(facts: Facts, shape: tuple[int, ...]) -> Array:
    return facts.rng.standard_normal(shape).astype(np.float32)


def batch(name: str = "batch") -> Dim:
    """The batch axis: one for all inputs, but pictures may be more or fewer than texts."""
    return Dim(name, 1, 1, MAX_BATCH)


MAKERS: dict[str, Callable[[Facts], Input]] = {
    "input_ids": _input_ids,
    "attention_mask": _attention_mask,
    "decoder_input_ids": _decoder_input_ids,
    "pixel_values": _pixel_values,
    "input_values": _input_values,
    "input_features": _input_features,
}
