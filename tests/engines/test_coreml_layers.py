"""Layers, pictures, recurrence and quantization in the evaluator, from a file, against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mil import Row, draw, evaluate, evaluate_rows, same, whole
from torch import Tensor, nn

pytest.importorskip("coremltools")

SIGNAL, PICTURE, VOLUME = draw(2, 4, 9), draw(2, 4, 7, 8), draw(1, 2, 5, 6, 4)
VECTOR = draw(2, 3, 4)


def row(name: str, build: Any, want: Any, *inputs: Tensor) -> Row:
    """One use of an operator."""
    return Row(name, build, want, inputs)


def conv(name: str, x: Tensor, weight: Tensor, want: Any, **options: Any) -> Row:
    """A convolution with a bias."""
    bias = draw(weight.shape[0])
    return row(
        f"conv {name}",
        lambda mb, v: mb.conv(x=v, weight=weight.numpy(), bias=bias.numpy(), **options),
        lambda v: want(v, weight, bias),
        x,
    )


def transposed(name: str, want: Any, x: Tensor = PICTURE, **options: Any) -> Row:
    """A transposed convolution: 4 channels to 6."""
    weight = draw(4, 6, *(3,) * (x.dim() - 2))
    return row(
        f"conv_transpose {name}",
        lambda mb, v: mb.conv_transpose(x=v, weight=weight.numpy(), **options),
        lambda v: want(v, weight),
        x,
    )


def pool(name: str, want: Any, x: Tensor = PICTURE, **options: Any) -> Row:
    """A pooling layer."""
    kind = name.partition(" ")[0]
    return row(name, lambda mb, v: getattr(mb, kind)(x=v, **options), want, x)


CONVOLUTIONS = [
    conv("1-D", SIGNAL, draw(6, 4, 3), lambda x, w, b: F.conv1d(x, w, b, 2), strides=[2],
         pad_type="valid"),
    conv("2-D", PICTURE, draw(6, 2, 3, 3),
         lambda x, w, b: F.conv2d(F.pad(x, (0, 1, 2, 0)), w, b, 1, 0, 2, 2), pad_type="custom",
         pad=[2, 0, 0, 1], dilations=[2, 2], groups=2),
    conv("3-D", VOLUME, draw(3, 2, 2, 2, 2), F.conv3d, pad_type="valid"),
    conv("same", PICTURE, draw(6, 4, 3, 2),
         lambda x, w, b: F.conv2d(F.pad(x, (0, 0, 1, 1)), w, b, 2), strides=[2, 2],
         pad_type="same"),
    conv("same_lower", SIGNAL, draw(6, 4, 2), lambda x, w, b: F.conv1d(F.pad(x, (1, 0)), w, b),
         pad_type="same_lower"),
    transposed("valid", lambda x, w: F.conv_transpose2d(x, w, stride=2), strides=[2, 2],
               pad_type="valid"),
    transposed("1-D", lambda x, w: F.conv_transpose1d(x, w), SIGNAL, pad_type="valid"),
    transposed("custom", lambda x, w: F.conv_transpose2d(x, w, padding=1), pad_type="custom",
               pad=[1, 1, 1, 1]),
    transposed("to a size", lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1,
                                                            output_padding=1),
               strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1],
               output_shape=[2, 6, 14, 16]),
    transposed("same", lambda x, w: F.conv_transpose2d(x, w, stride=2)[..., :-1, :-1],
               strides=[2, 2], pad_type="same"),
]  # fmt: skip

POOLS = [
    pool("max_pool", lambda x: F.max_pool2d(x, 3, 2, 1), kernel_sizes=[3, 3], strides=[2, 2],
         pad_type="custom", pad=[1, 1, 1, 1]),
    pool("max_pool rounded up", lambda x: F.max_pool2d(x, 3, 2, 0, ceil_mode=True),
         kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[0, 0, 0, 0], ceil_mode=True),
    pool("avg_pool", lambda x: F.avg_pool2d(x, 3, 2, 1), kernel_sizes=[3, 3], strides=[2, 2],
         pad_type="custom", pad=[1, 1, 1, 1]),
    pool("avg_pool without padding", lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
         kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1],
         exclude_padding_from_average=True),
    pool("avg_pool rounded up", lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
         kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1], ceil_mode=True),
    pool("avg_pool 1-D", lambda x: F.avg_pool1d(x, 2, 1), SIGNAL, kernel_sizes=[2],
         pad_type="valid"),
    pool("l2_pool", lambda x: F.lp_pool2d(x, 2.0, 2, 2), kernel_sizes=[2, 2], strides=[2, 2],
         pad_type="valid"),
]  # fmt: skip

WEIGHT, GAMMA, BETA = draw(5, 4), draw(4, seed=3), draw(4, seed=4)
STATISTICS = {"mean": draw(4).numpy(), "variance": draw(4, seed=1).abs().numpy()}
PRODUCTS = [
    row("linear", lambda mb, x: mb.linear(x=x, weight=WEIGHT.numpy(), bias=draw(5).numpy()),
        lambda x: F.linear(x, WEIGHT, draw(5)), VECTOR),
    row("matmul", lambda mb, x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True),
        lambda x, y: x.mT @ y.mT, VECTOR, draw(2, 6, 3)),
    row("einsum", lambda mb, x, y: mb.einsum(values=(x, y), equation="abcd,adce->abce"),
        lambda x, y: torch.einsum("abcd,adce->abce", x, y), draw(2, 3, 4, 5),
        draw(2, 5, 4, 6)),
    row("attention", lambda mb, q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v),
        F.scaled_dot_product_attention, draw(1, 2, 3, 4), draw(1, 2, 5, 4),
        draw(1, 2, 5, 4, seed=2)),
    row("masked attention",
        lambda mb, q, k, v, m: mb.scaled_dot_product_attention(query=q, key=k, value=v,
                                                               attn_mask=m),
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), draw(1, 2, 3, 4),
        draw(1, 2, 5, 4), draw(1, 2, 5, 4, seed=2), draw(3, 5)),
    row("batch_norm",
        lambda mb, x: mb.batch_norm(x=x, gamma=GAMMA.numpy(), beta=BETA.numpy(), epsilon=0.1,
                                    **STATISTICS),
        lambda x: F.batch_norm(x, *map(torch.from_numpy, STATISTICS.values()), GAMMA, BETA,
                               eps=0.1),
        PICTURE),
    row("instance_norm",
        lambda mb, x: mb.instance_norm(x=x, gamma=GAMMA.numpy(), beta=BETA.numpy(), epsilon=0.1),
        lambda x: F.instance_norm(x, weight=GAMMA, bias=BETA, eps=0.1), PICTURE),
    row("layer_norm",
        lambda mb, x: mb.layer_norm(x=x, axes=[-1], gamma=GAMMA.numpy(), beta=BETA.numpy(),
                                    epsilon=0.1),
        lambda x: F.layer_norm(x, (4,), GAMMA, BETA, 0.1), VECTOR),
    row("layer_norm of a middle axis", lambda mb, x: mb.layer_norm(x=x, axes=[1], epsilon=0.1),
        lambda x: F.layer_norm(x.mT, (3,), eps=0.1).mT, VECTOR),
    row("l2_norm", lambda mb, x: mb.l2_norm(x=x, epsilon=0.1),
        lambda x: x / (x.square().sum((1, 2, 3), True) + 0.1).sqrt(), PICTURE),
    row("local_response_norm",
        lambda mb, x: mb.local_response_norm(x=x, size=3, alpha=0.2, beta=0.5, k=1.5),
        lambda x: F.local_response_norm(x, 3, 0.2, 0.5, 1.5), PICTURE),
]  # fmt: skip


def resized(x: Tensor, *size: int, **options: Any) -> Tensor:
    """torch's own resizing."""
    return F.interpolate(x, size, **options)


GRID = draw(2, 5, 6, 2).clamp(-1.2, 1.2)
PICTURES = [
    row("upsample_nearest_neighbor",
        lambda mb, x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2,
                                                   scale_factor_width=3),
        lambda x: resized(x, 14, 24), PICTURE),
    row("resize_nearest_neighbor",
        lambda mb, x: mb.resize_nearest_neighbor(x=x, target_size_height=4, target_size_width=12),
        lambda x: resized(x, 4, 12), PICTURE),
    row("upsample_bilinear",
        lambda mb, x: mb.upsample_bilinear(x=x, scale_factor_height=2.0, scale_factor_width=1.5,
                                           align_corners=False),
        lambda x: resized(x, 14, 12, mode="bilinear"), PICTURE),
    row("upsample_bilinear with aligned corners",
        lambda mb, x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=3,
                                           align_corners=True),
        lambda x: resized(x, 14, 24, mode="bilinear", align_corners=True), PICTURE),
    *(row(f"resize_bilinear {mode}",
          lambda mb, x, m=mode: mb.resize_bilinear(x=x, target_size_height=5, target_size_width=12,
                                                   sampling_mode=m),
          lambda x, c=corners: resized(x, 5, 12, mode="bilinear", align_corners=c), PICTURE)
      for mode, corners in (("UNALIGN_CORNERS", False), ("STRICT_ALIGN_CORNERS", True))),
    row("resize",
        lambda mb, x: mb.resize(x=x, shape=[0, 12], resized_dims=np.uint32(2),
                                interpolation_mode="LINEAR", sampling_mode="UNALIGN_CORNERS"),
        lambda x: resized(x, 7, 12, mode="bilinear"), PICTURE),
    row("resize to the nearest",
        lambda mb, x: mb.resize(x=x, shape=[14, 24], resized_dims=np.uint32(2),
                                interpolation_mode="NEAREST_NEIGHBOR", sampling_mode="DEFAULT"),
        lambda x: resized(x, 14, 24), PICTURE),
    *(row(f"resample {mode} {padding}",
          lambda mb, x, g, m=mode, p=padding: mb.resample(
              x=x, coordinates=g, sampling_mode=m, padding_mode=p, padding_value=0.0,
              coordinates_mode="normalized_minus_one_to_one", align_corners=False),
          lambda x, g, m=mode, p=torchs: F.grid_sample(x, g, m, p, False), PICTURE, GRID)
      for mode, padding, torchs in (("bilinear", "constant", "zeros"),
                                    ("nearest", "border", "border"),
                                    ("bilinear", "reflection", "reflection"))),
]  # fmt: skip


def gates(weight: Tensor, order: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """torch's gates in MIL's order."""
    parts = weight.detach().chunk(len(order))
    return torch.cat([parts[i] for i in order]).numpy()


LSTM, GRU, RNN = nn.LSTM(4, 5), nn.GRU(4, 5), nn.RNN(4, 5)
BOTH = nn.LSTM(4, 5, bidirectional=True)
SEQUENCE, START = draw(6, 2, 4), draw(2, 5)
IFOZ = (0, 1, 3, 2)  # torch has input, forget, cell, output


def lstm_weights(module: nn.LSTM, suffix: str = "", tail: str = "") -> dict[str, Any]:
    """Of one direction, under MIL's names."""
    own = dict(module.named_parameters())
    bias = own[f"bias_ih_l0{suffix}"] + own[f"bias_hh_l0{suffix}"]
    return {
        f"weight_ih{tail}": gates(own[f"weight_ih_l0{suffix}"], IFOZ),
        f"weight_hh{tail}": gates(own[f"weight_hh_l0{suffix}"], IFOZ),
        f"bias{tail}": gates(bias, IFOZ),
    }


def without_new_bias() -> nn.GRU:
    """MIL adds the new gate's recurrent bias outside the reset, where torch has none of its own."""
    with torch.no_grad():
        GRU.bias_hh_l0[10:] = 0
    return GRU


def gru_wanted(x: Tensor, h: Tensor) -> list[Tensor]:
    """Hidden states and the last one."""
    steps, last = without_new_bias()(x, h[None])
    return [steps, last[0]]


RECURRENT = [
    row("lstm",
        lambda mb, x, h, c: mb.lstm(x=x, initial_h=h, initial_c=c, output_sequence=True,
                                    **lstm_weights(LSTM)),
        lambda x, h, c: [LSTM(x, (h[None], c[None]))[0],
                         *(s[0] for s in LSTM(x, (h[None], c[None]))[1])],
        SEQUENCE, START, draw(2, 5, seed=9)),
    row("lstm backwards, last step",
        lambda mb, x, h, c: mb.lstm(x=x, initial_h=h, initial_c=c, direction="reverse",
                                    **lstm_weights(LSTM)),
        lambda x, h, c: [LSTM(x.flip(0), (h[None], c[None]))[0][-1:],
                         *(s[0] for s in LSTM(x.flip(0), (h[None], c[None]))[1])],
        SEQUENCE, START, draw(2, 5, seed=9)),
    row("lstm both ways",
        lambda mb, x: mb.lstm(x=x, initial_h=np.zeros((2, 10), np.float32),
                              initial_c=np.zeros((2, 10), np.float32), output_sequence=True,
                              direction="bidirectional", **lstm_weights(BOTH),
                              **lstm_weights(BOTH, "_reverse", "_back"))[0],
        lambda x: BOTH(x)[0], SEQUENCE),
    row("gru",
        lambda mb, x, h: mb.gru(
            x=x, initial_h=h, output_sequence=True,
            weight_ih=gates(GRU.weight_ih_l0, (0, 2, 1)),
            weight_hh=gates(GRU.weight_hh_l0, (0, 2, 1)),
            bias=gates(GRU.bias_ih_l0 + without_new_bias().bias_hh_l0, (0, 2, 1))),
        gru_wanted, SEQUENCE, START),
    row("rnn",
        lambda mb, x, h: mb.rnn(x=x, initial_h=h, output_sequence=True,
                                weight_ih=RNN.weight_ih_l0.detach().numpy(),
                                weight_hh=RNN.weight_hh_l0.detach().numpy(),
                                bias=(RNN.bias_ih_l0 + RNN.bias_hh_l0).detach().numpy()),
        lambda x, h: [RNN(x, h[None])[0], RNN(x, h[None])[1][0]], SEQUENCE, START),
]  # fmt: skip

SCALES, POINTS = np.float32([0.02, 0.1, 0.5]), np.int8([-3, 0, 4])
QUANTIZED = [
    row("quantize",
        lambda mb, x: mb.quantize(input=x, scale=np.float32(0.05), zero_point=np.uint8(120),
                                  output_dtype="uint8"),
        lambda x: (torch.fake_quantize_per_tensor_affine(x, 0.05, 120, 0, 255) / 0.05 + 120)
        .round().int(),
        VECTOR * 5),
    row("quantize and back, by channel",
        lambda mb, x: mb.dequantize(
            input=mb.quantize(input=x, scale=SCALES, zero_point=POINTS, axis=1,
                              output_dtype="int8"),
            scale=SCALES, zero_point=POINTS, axis=1),
        lambda x: torch.fake_quantize_per_channel_affine(
            x, torch.from_numpy(SCALES), torch.from_numpy(POINTS).int(), 1, -128, 127), VECTOR * 5),
    row("constexpr_blockwise_shift_scale",
        lambda mb: mb.identity(x=mb.constexpr_blockwise_shift_scale(
            data=np.arange(8, dtype=np.int8).reshape(2, 4), scale=np.float32([[1, 2], [3, 4]]),
            offset=np.int8([[0, 1], [0, 1]]))),
        lambda: torch.tensor([[0.0, 1, 2, 4], [12, 15, 20, 24]])),
    row("constexpr_lut_to_dense",
        lambda mb: mb.identity(x=mb.constexpr_lut_to_dense(
            indices=np.uint8([[3, 0], [1, 2]]).astype(uint2()),
            lut=np.float32([1, 5, 9, 13]).reshape(1, 1, 4, 1))),
        lambda: torch.tensor([[13.0, 1], [5, 9]])),
]  # fmt: skip


def uint2() -> Any:
    """NumPy's dtype that MIL reads as two bits."""
    from coremltools.converters.mil.mil import types

    return types.nptype_from_builtin(types.uint2)


FAMILIES = {
    "convolutions": CONVOLUTIONS,
    "pools": POOLS,
    "products": PRODUCTS,
    "pictures": PICTURES,
    "recurrent": RECURRENT,
    "quantized": QUANTIZED,
}
_found: dict[str, dict[str, list[Tensor]]] = {}


@pytest.mark.parametrize(
    ("family", "row"),
    [pytest.param(f, r, id=f"{f}-{r}") for f, rows in FAMILIES.items() for r in rows],
)
def test_computes_what_torch_computes(
    family: str, row: Row, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if family not in _found:
        package = tmp_path_factory.mktemp(family) / "rows.mlpackage"
        _found[family] = evaluate_rows(FAMILIES[family], package)
    with torch.no_grad():
        want = row.want(*row.inputs)
    got = _found[family][row.name]
    assert same(got, want), f"{got} is not {want}"


def test_half_precision_has_its_steps_and_its_range(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def build(mb: Any, inputs: list[Any]) -> Any:
        x = mb.cast(x=inputs[0], dtype="fp16")
        return mb.add(x=x, y=np.float16(1)), mb.mul(x=x, y=np.float16(2)), mb.reduce_sum(x=x)

    package = tmp_path_factory.mktemp("half") / "p.mlpackage"
    x = torch.tensor([2048.0, 40000.0, 1e-9, 0.1])
    added, doubled, total = evaluate(build, [x], package)
    assert added.tolist() == [2048.0, 40000.0, 1.0, float(torch.tensor(1.1).half())]
    assert doubled.tolist()[1] == float("inf")
    assert float(total) == float((x.half().float().sum()).half())  # rounded once, at the end


def test_control_flow(tmp_path_factory: pytest.TempPathFactory) -> None:
    def build(mb: Any, inputs: list[Any]) -> Any:
        (x,) = inputs
        total = mb.reduce_sum(x=x)
        chosen = mb.cond(
            pred=mb.greater(x=total, y=0.0),
            _true_fn=lambda: mb.mul(x=x, y=2.0),
            _false_fn=lambda: mb.sub(x=x, y=1.0),
        )
        _, power = mb.while_loop(
            _cond=lambda count, value: mb.less(x=count, y=3.0),
            _body=lambda count, value: (mb.add(x=count, y=1.0), mb.mul(x=value, y=x)),
            loop_vars=(0.0, x),
        )
        return chosen, power

    package = tmp_path_factory.mktemp("flow") / "p.mlpackage"
    for x in (torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -2.0])):
        chosen, power = evaluate(build, [x], package)
        assert torch.equal(chosen, x * 2 if x.sum() > 0 else x - 1)
        assert torch.equal(power, x**4)


def test_an_operator_that_it_does_not_know_is_named(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from sdk.errors import EngineError

    def build(mb: Any, inputs: list[Any]) -> Any:
        return mb.random_bernoulli(shape=mb.shape(x=inputs[0]))

    package = tmp_path_factory.mktemp("unknown") / "p.mlpackage"
    with pytest.raises(EngineError, match="does not know the operator 'random_bernoulli'"):
        evaluate(build, [draw(2, 3)], package)


def test_a_failing_operator_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    from sdk.errors import EngineError

    def build(mb: Any, inputs: list[Any]) -> Any:
        return mb.gather(x=inputs[0], indices=inputs[1], axis=0, name="lookup")

    package = tmp_path_factory.mktemp("failing") / "p.mlpackage"
    with pytest.raises(EngineError, match=r"failed at 'lookup\w*' \(gather\)"):
        evaluate(build, [draw(2, 3), whole(5)], package)
