"""The rows of the coverage table: architectures of `transformers` as small random models.

Sizes are cut down, structure is not: heads, groups, norms, relative positions and stages are those
of the real ones. Weights are drawn so that every part matters (see `liven`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from sdk.compilers.huggingface_inputs import picture, propose

TEXT = {"vocab_size": 211, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = TEXT | {"intermediate_size": 64, "max_position_embeddings": 64}
DECODER = ENCODER | {"num_key_value_heads": 2}
BETWEEN = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
           "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
           "max_position_embeddings": 64, "vocab_size": 211}  # fmt: skip
# Tokens that decoders start, stop and fill with, inside the small vocabulary.
MARKS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
BARE = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}
PATCHED = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
           "intermediate_size": 64, "image_size": 32, "patch_size": 8}  # fmt: skip
WAVE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "vocab_size": 32, "conv_dim": (16, 16, 16),
        "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2), "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
        "mask_time_prob": 0.0}  # fmt: skip
STAGES = {"num_channels": 3, "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32],
          "depths": [1, 1, 2, 1], "layer_type": "bottleneck"}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """One row: a model class and the settings of its configuration.

    Rows with `int8` are the vision and text encoders, which the table also builds in int8.
    """

    name: str
    kind: str
    model: str
    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    int8: bool = False

    def configuration(self) -> transformers.PretrainedConfig:
        """The small configuration, naming its model class as a saved one does."""
        classes = {"num_labels": 16} if "Classification" in self.model else {}
        config = getattr(transformers, self.config)(**self.settings, **classes)
        config.architectures = [self.model]
        return config

    def build(self) -> transformers.PreTrainedModel:
        """The model with weights that depend on its name only."""
        torch.manual_seed(zlib.crc32(self.name.encode()))
        model = getattr(transformers, self.model)(self.configuration())
        liven(model)
        return model.eval()


def liven(model: nn.Module) -> None:
    """Draw weights so that no part is idle.

    Untrained models of `transformers` have tiny weights, norms of one and biases of zero: a build
    that drops a layer or swaps two constants would still be close.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                nn.init.kaiming_normal_(module.weight, nonlinearity=_gain(module))
            for parameter in module.parameters(recurse=False):
                if parameter.dim() < 2:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                elif not parameter.any():
                    parameter.normal_(0, 0.1)
    measure_statistics(model)


def measure_statistics(model: nn.Module) -> None:
    """Give batch norms the statistics of what reaches them: with others the signal fades."""
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    if not norms or not isinstance(model, transformers.PreTrainedModel):
        return
    (value,) = propose(model, None)[0].values()
    pixels = picture(np.random.default_rng(2), (4, *value.shape[1:]))
    model.eval()
    for norm in norms:
        norm.momentum = None  # the plain mean over what follows
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        model(torch.from_numpy(pixels))
    model.eval()


def _gain(module: nn.Module) -> str:
    """Convolutions are mostly followed by rectifiers, linear layers by norms and sums."""
    return "linear" if isinstance(module, nn.Linear) else "relu"


def _row(kind: str, name: str, model: str, config: str, *, int8: bool = False,
         **settings: Any) -> Architecture:  # fmt: skip
    return Architecture(name, kind, model, config, settings, int8)


TEXT_ENCODERS = (
    _row("text encoder", "BERT", "BertModel", "BertConfig", int8=True, **ENCODER),
    _row("text encoder", "DistilBERT", "DistilBertModel", "DistilBertConfig", int8=True,
         vocab_size=211, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64),
    _row("text encoder", "RoBERTa", "RobertaModel", "RobertaConfig", int8=True, **ENCODER),
    _row("text encoder", "ALBERT", "AlbertModel", "AlbertConfig", int8=True, embedding_size=16,
         **ENCODER),
    _row("text encoder", "ELECTRA", "ElectraModel", "ElectraConfig", int8=True, embedding_size=16,
         **ENCODER),
    _row("text encoder", "MPNet", "MPNetModel", "MPNetConfig", int8=True, **ENCODER),
    _row("text encoder", "DeBERTa-v2", "DebertaV2Model", "DebertaV2Config", int8=True,
         relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16,
         norm_rel_ebd="layer_norm", share_att_key=True, **ENCODER),
    _row("text encoder", "ModernBERT", "ModernBertModel", "ModernBertConfig", int8=True,
         local_attention=8, global_attn_every_n_layers=2, pad_token_id=0, cls_token_id=1,
         bos_token_id=1, sep_token_id=2, eos_token_id=2, **ENCODER),
)  # fmt: skip
DECODERS = (
    _row("decoder", "GPT-2", "GPT2LMHeadModel", "GPT2Config", vocab_size=211, n_embd=32, n_layer=2,
         n_head=4, n_positions=64, **BARE),
    _row("decoder", "GPT-NeoX", "GPTNeoXForCausalLM", "GPTNeoXConfig", **ENCODER, **BARE),
    _row("decoder", "Llama", "LlamaForCausalLM", "LlamaConfig", **DECODER, **BARE),
    _row("decoder", "Mistral", "MistralForCausalLM", "MistralConfig", sliding_window=8, **DECODER,
         **BARE),
    _row("decoder", "Qwen2", "Qwen2ForCausalLM", "Qwen2Config", **DECODER, **BARE),
    _row("decoder", "Qwen3", "Qwen3ForCausalLM", "Qwen3Config", head_dim=8, **DECODER, **BARE),
    _row("decoder", "Gemma", "GemmaForCausalLM", "GemmaConfig", head_dim=8, **DECODER, **BARE),
    _row("decoder", "Gemma 2", "Gemma2ForCausalLM", "Gemma2Config", head_dim=8, sliding_window=8,
         **DECODER, **BARE),
    _row("decoder", "Phi", "PhiForCausalLM", "PhiConfig", **DECODER, **BARE),
    _row("decoder", "OPT", "OPTForCausalLM", "OPTConfig", vocab_size=211, hidden_size=32,
         num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, max_position_embeddings=64,
         word_embed_proj_dim=32, pad_token_id=1, bos_token_id=2, eos_token_id=2),
    _row("decoder", "BLOOM", "BloomForCausalLM", "BloomConfig", vocab_size=211, hidden_size=32,
         n_layer=2, n_head=4, **BARE),
    _row("decoder", "Mamba", "MambaForCausalLM", "MambaConfig", vocab_size=211, hidden_size=32,
         num_hidden_layers=2, state_size=8, **BARE),
)  # fmt: skip
ENCODER_DECODERS = (
    _row("encoder-decoder", "T5", "T5ForConditionalGeneration", "T5Config", vocab_size=211,
         d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0),
    _row("encoder-decoder", "BART", "BartForConditionalGeneration", "BartConfig", **BETWEEN,
         **MARKS, forced_eos_token_id=None),
    _row("encoder-decoder", "Marian", "MarianMTModel", "MarianConfig", **BETWEEN,
         pad_token_id=1, eos_token_id=0, decoder_start_token_id=1, forced_eos_token_id=None,
         decoder_vocab_size=211),
    _row("encoder-decoder", "Pegasus", "PegasusForConditionalGeneration", "PegasusConfig",
         **BETWEEN, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
         forced_eos_token_id=None),
)  # fmt: skip
SPEECH = (
    _row("speech", "Whisper", "WhisperForConditionalGeneration", "WhisperConfig",
         vocab_size=211, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
         decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=16,
         max_source_positions=32, max_target_positions=32, suppress_tokens=None,
         begin_suppress_tokens=None, **MARKS),
    _row("speech", "Wav2Vec2", "Wav2Vec2ForCTC", "Wav2Vec2Config", **WAVE),
    _row("speech", "HuBERT", "HubertForCTC", "HubertConfig", **WAVE),
    _row("speech", "AST", "ASTForAudioClassification", "ASTConfig", hidden_size=32,
         num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, patch_size=8,
         frequency_stride=8, time_stride=8, max_length=64, num_mel_bins=16),
    _row("speech", "VITS", "VitsModel", "VitsConfig", vocab_size=38, hidden_size=32,
         num_hidden_layers=2, num_attention_heads=2, ffn_dim=64, flow_size=32,
         spectrogram_bins=33, upsample_initial_channel=32, upsample_rates=[4, 4],
         upsample_kernel_sizes=[8, 8], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
         prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=2,
         duration_predictor_num_flows=2, depth_separable_num_layers=2,
         noise_scale=0.0, noise_scale_duration=0.0),
)  # fmt: skip
VISION = (
    _row("vision", "ViT", "ViTForImageClassification", "ViTConfig", int8=True, **PATCHED),
    _row("vision", "DeiT", "DeiTForImageClassification", "DeiTConfig", int8=True, **PATCHED),
    _row("vision", "DINOv2", "Dinov2Model", "Dinov2Config", int8=True, hidden_size=32,
         num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=32, patch_size=8),
    _row("vision", "BEiT", "BeitForImageClassification", "BeitConfig", int8=True,
         use_relative_position_bias=True, **PATCHED),
    _row("vision", "Swin", "SwinForImageClassification", "SwinConfig", int8=True, image_size=32,
         patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4),
    _row("vision", "ConvNeXt", "ConvNextForImageClassification", "ConvNextConfig", int8=True,
         hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], image_size=64),
    _row("vision", "ResNet", "ResNetForImageClassification", "ResNetConfig", int8=True, **STAGES),
    _row("vision", "MobileNetV2", "MobileNetV2ForImageClassification", "MobileNetV2Config",
         int8=True, image_size=64, depth_multiplier=0.35, min_depth=8),
    _row("vision", "EfficientNet", "EfficientNetForImageClassification", "EfficientNetConfig",
         int8=True, image_size=64, width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320),
    _row("vision", "MobileViT", "MobileViTForImageClassification", "MobileViTConfig", int8=True,
         image_size=64, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 12, 16, 24, 32, 64],
         num_attention_heads=4),
    _row("vision", "SegFormer", "SegformerForSemanticSegmentation", "SegformerConfig", int8=True,
         image_size=64, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1],
         num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=32),
    _row("vision", "DETR", "DetrForObjectDetection", "DetrConfig", int8=True,
         use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
         backbone_config={"model_type": "resnet", **STAGES, "out_features": ["stage4"]},
         d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
         decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=8),
    _row("vision", "DPT", "DPTForDepthEstimation", "DPTConfig", int8=True,
         backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 16, 24, 32],
         fusion_hidden_size=16, **PATCHED | {"num_hidden_layers": 4}),
)  # fmt: skip
_PAIR = {
    "text_config": ENCODER | {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
    "vision_config": PATCHED,
}
MULTIMODAL = (
    _row("multimodal", "CLIP", "CLIPModel", "CLIPConfig", projection_dim=16, **_PAIR),
    _row("multimodal", "SigLIP", "SiglipModel", "SiglipConfig", **_PAIR),
    _row("multimodal", "BLIP", "BlipModel", "BlipConfig", projection_dim=16, **_PAIR),
)  # fmt: skip
ARCHITECTURES = (
    *TEXT_ENCODERS, *DECODERS, *ENCODER_DECODERS, *SPEECH, *VISION, *MULTIMODAL,
)  # fmt: skip
