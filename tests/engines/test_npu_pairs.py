"""Q/DQ pairs around every operator: nothing is left in float, and nothing is computed otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

import sdk
from sdk.compilers.annotate_all import MASKED, WHOLE
from sdk.compilers.capture import capture, example_feed
from sdk.compilers.program import Program
from sdk.compilers.quantize import quantize
from sdk.parity import Tolerance, compare

CLOSE = Tolerance(rms=0.02, worst=0.05)


class Attend(nn.Module):
    """Attention of one kind; `mask` is 1 where a token is there."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.qkv = kind, nn.Linear(16, 48)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        there, rows = mask[:, None, None, :], mask[:, None, :, None]
        if self.kind == "causal":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True) * rows
        if self.kind == "grouped":
            shared = (t[:, :2] for t in (k, v))
            return F.scaled_dot_product_attention(q, *shared, enable_gqa=True, scale=0.3) * rows
        if self.kind == "boolean":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=there > 0)
        if self.kind == "least":
            least = (1 - there) * torch.finfo(torch.float32).min
            return F.scaled_dot_product_attention(q, k, v, attn_mask=least)
        scores = (q @ k.transpose(-1, -2) / 2.0).masked_fill(there == 0, float("-inf"))
        return torch.softmax(scores, -1) @ v


class Parts(nn.Module):
    """Splits of all kinds, gates, norms and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.batch = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.group, self.layer = nn.GroupNorm(2, 8), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.group(torch.relu(self.batch(self.conv(x)))).split(4, 1)
        c, d = F.silu(a).split([1, 3], 1)
        e, f = self.layer(b).unbind(0)
        return 2 * torch.cat([c, d / 3 - 1], 1) + torch.stack([e * f, e])


def draw_tokens(index: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(index)
    mask = torch.ones(2, 6)
    mask[0, 4:] = 0
    return {"x": torch.randn(2, 6, 16, generator=generator), "mask": mask}


def draw_picture(index: int) -> dict[str, Tensor]:
    return {"x": torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(index))}


def pair(
    model: nn.Module, draw: Callable[[int], Mapping[str, Tensor]], precision: str, **options: Any
) -> tuple[Program, Program]:
    """The program in fp32 and with pairs everywhere."""
    program = capture(model.eval(), draw(0))
    feeds = [example_feed(model, draw(index)) or {} for index in range(24)]
    return program, quantize(program, feeds, precision=precision, everywhere=True, **options)


def loose(program: Program) -> list[Node]:
    """Operators on floats that read a float which comes from no grid."""

    def is_float(node: Node) -> bool:
        value = node.meta.get("val")
        return isinstance(value, Tensor) and value.is_floating_point()

    return [
        node
        for node in program.exported.graph.nodes
        if node.op == "call_function" and is_float(node) and node.target not in WHOLE
        and "quantized_decomposed" not in str(node.target)
        and any(
            is_float(source) and "quantized_decomposed" not in str(source.target)
            and source.op != "placeholder"  # the biases of layers, 32 bits in the engine's file
            for source in node.all_input_nodes
        )
    ]  # fmt: skip


MODELS = {
    **{kind: (lambda kind=kind: Attend(kind), draw_tokens)
       for kind in ("causal", "grouped", "boolean", "least", "filled")},
    "parts": (Parts, draw_picture),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_computes_what_the_model_computes(name: str) -> None:
    torch.manual_seed(0)
    build, draw = MODELS[name]
    plain, quantized = pair(build(), draw, "a16w8")
    feed = {key: value.numpy() for key, value in draw(100).items()}
    report = compare(quantized.reference(feed), plain.reference(feed), CLOSE)
    assert report.ok, str(report)
    outside = {str(node.target) for node in loose(quantized)}
    assert outside <= {"aten.relu.default", "aten.view.default", "aten.to.dtype"}, outside


@pytest.mark.slow
def test_sixteen_bits_are_closer_than_eight() -> None:
    torch.manual_seed(0)
    model, feed = Parts(), {"x": draw_picture(100)["x"].numpy()}
    errors = {}
    for precision in ("int8", "a16w8"):
        plain, quantized = pair(model, draw_picture, precision)
        assert quantized.precision == precision
        errors[precision] = compare(
            quantized.reference(feed), plain.reference(feed), CLOSE
        ).worst.rms
    assert errors["a16w8"] < 0.5 * errors["int8"]


def test_mask_leaves_steps_for_the_scores() -> None:
    """With the least float on the grid all scores would be one step."""
    torch.manual_seed(0)
    _, quantized = pair(Attend("least"), draw_tokens, "int8")
    scales = [
        float(node.args[1])
        for node in quantized.exported.graph.nodes
        if str(node.target).startswith("quantized_decomposed.quantize_per_tensor")
    ]
    assert 0 < max(scales) <= 2 * abs(MASKED) / 255


def test_layer_that_is_kept_stays_in_float() -> None:
    torch.manual_seed(0)
    _, quantized = pair(Attend("filled"), draw_tokens, "a16w8", keep_float=["qkv"])
    assert quantized.float_layers == ("qkv",)
    weights = {tensor.dtype for tensor in quantized.exported.state_dict.values()}
    assert torch.int8 not in weights
    with pytest.raises(sdk.InputError, match="unknown layer 'nothing'"):
        pair(Attend("filled"), draw_tokens, "a16w8", keep_float=["nothing"])


@pytest.mark.slow
def test_other_targets_keep_their_pairs() -> None:
    """What CPUs get does not change: integer kernels where they have them, float elsewhere."""
    torch.manual_seed(0)
    program = capture(Attend("causal").eval(), draw_tokens(0))
    feeds = [{k: v.numpy() for k, v in draw_tokens(index).items()} for index in range(4)]
    targets = {str(n.target) for n in quantize(program, feeds).exported.graph.nodes}
    assert "aten.scaled_dot_product_attention.default" in targets
    assert np.isfinite(quantize(program, feeds).reference(feeds[0])["output"]).all()
