"""Each family of MIL operators in the evaluator, from a saved file, against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mil import Row, draw, evaluate_rows, same, whole
from torch import Tensor

pytest.importorskip("coremltools")

X, Y = draw(2, 3, 4), draw(2, 3, 4, seed=1)
POSITIVE = X.abs() + 0.1
UNIT = torch.tanh(X) * 0.9
PICTURE = draw(1, 3, 6, 7)
TABLE = draw(5, 4)
COUNTS = whole(7, -7, 5, -5)


def unary(name: str, x: Tensor = X, want: Callable[[Tensor], Tensor] | None = None) -> Row:
    """An operator with one input, called as in torch."""
    return Row(name, lambda mb, v: getattr(mb, name)(x=v), want or getattr(torch, name), (x,))


def binary(name: str, want: Any, x: Tensor = X, y: Tensor = Y) -> Row:
    """An operator with two inputs."""
    return Row(name, lambda mb, a, b: getattr(mb, name)(x=a, y=b), want, (x, y))


def activation(name: str, want: Any, **options: Any) -> Row:
    """An activation with settings."""
    return Row(name, lambda mb, v: getattr(mb, name)(x=v, **options), want, (PICTURE,))


def reduction(name: str, want: Any, **options: Any) -> Row:
    """A reduction, of numbers above zero."""
    label = f"{name}{options or ''}"
    return Row(label, lambda mb, v: getattr(mb, name)(x=v, **options), want, (POSITIVE,))


def row(name: str, build: Any, want: Any, *inputs: Tensor) -> Row:
    """Any other use."""
    return Row(name, build, want, inputs)


ELEMENTWISE = [
    *map(unary, ("abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "sigmoid",
                 "sign", "sin", "sinh", "square", "tan", "tanh")),
    unary("acos", UNIT), unary("asin", UNIT), unary("atanh", UNIT), unary("sqrt", POSITIVE),
    unary("round", torch.tensor([0.5, 1.5, 2.5, -0.5, 2.4])),
    unary("relu", want=F.relu), unary("relu6", X * 5, F.relu6), unary("silu", want=F.silu),
    unary("softplus", want=F.softplus), unary("softsign", want=F.softsign),
    row("log", lambda mb, v: mb.log(x=v, epsilon=0.5), lambda x: (x + 0.5).log(), POSITIVE),
    row("inverse", lambda mb, v: mb.inverse(x=v, epsilon=0.5), lambda x: 1 / (x + 0.5), POSITIVE),
    row("rsqrt", lambda mb, v: mb.rsqrt(x=v, epsilon=0.5), lambda x: (x + 0.5).rsqrt(), POSITIVE),
    row("clip", lambda mb, v: mb.clip(x=v, alpha=-0.5, beta=0.7), lambda x: x.clamp(-0.5, 0.7), X),
    row("threshold", lambda mb, v: mb.threshold(x=v, alpha=0.2), lambda x: x.clamp(min=0.2), X),
    binary("add", torch.add), binary("sub", torch.sub), binary("mul", torch.mul),
    binary("real_div", torch.div), binary("maximum", torch.maximum),
    binary("minimum", torch.minimum), binary("pow", torch.pow, POSITIVE),
    row("floor_div of whole numbers", lambda mb, a, b: mb.floor_div(x=a, y=b),
        lambda a, b: a.div(b, rounding_mode="floor"), COUNTS, whole(2, 2, -3, -3)),
    row("mod of whole numbers", lambda mb, a, b: mb.mod(x=a, y=b), torch.remainder, COUNTS,
        whole(2, 2, -3, -3)),
    binary("equal", torch.eq), binary("not_equal", torch.ne), binary("greater", torch.gt),
    binary("greater_equal", torch.ge), binary("less", torch.lt), binary("less_equal", torch.le),
    *(row(f"logical_{name}",
          lambda mb, a, b, op=f"logical_{name}": getattr(mb, op)(x=mb.greater(x=a, y=0.0),
                                                                 y=mb.greater(x=b, y=0.0)),
          lambda a, b, op=f"logical_{name}": getattr(torch, op)(a > 0, b > 0), X, Y)
      for name in ("and", "or", "xor")),
    row("logical_not", lambda mb, v: mb.logical_not(x=mb.greater(x=v, y=0.0)), lambda x: x <= 0, X),
    row("select", lambda mb, a, b: mb.select(cond=mb.greater(x=a, y=b), a=a, b=b), torch.maximum,
        X, Y),
    row("cast to int32", lambda mb, v: mb.cast(x=v, dtype="int32"), lambda x: x.int(), X * 3),
    row("cast to fp16", lambda mb, v: mb.cast(x=v, dtype="fp16"), lambda x: x.half(), X),
    row("cast to bool", lambda mb, v: mb.cast(x=v, dtype="bool"),
        lambda x: x != 0, whole(0, 2, -1)),
    activation("elu", lambda x: F.elu(x, 0.3), alpha=0.3),
    activation("leaky_relu", lambda x: F.leaky_relu(x, 0.3), alpha=0.3),
    activation("linear_activation", lambda x: 0.3 * x + 0.5, alpha=0.3, beta=0.5),
    activation("scaled_tanh", lambda x: 0.3 * torch.tanh(0.5 * x), alpha=0.3, beta=0.5),
    activation("sigmoid_hard", lambda x: (0.3 * x + 0.5).clamp(0, 1), alpha=0.3, beta=0.5),
    activation("clamped_relu", lambda x: F.leaky_relu(x, 0.3).clamp(max=0.5), alpha=0.3, beta=0.5),
    activation("thresholded_relu", lambda x: F.threshold(x, 0.3, 0.0), alpha=0.3),
    activation("prelu", lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3])),
               alpha=[0.1, 0.2, 0.3]),
    activation("softplus_parametric",
               lambda x: torch.stack([F.softplus(x[:, i] * (i + 1)) * 0.5 for i in range(3)], 1),
               alpha=[0.5, 0.5, 0.5], beta=[1.0, 2.0, 3.0]),
    activation("softmax", lambda x: x.softmax(1), axis=1),
    *(row(f"gelu {mode}", lambda mb, v, m=mode: mb.gelu(x=v, mode=m), want, X) for mode, want in (
        ("EXACT", F.gelu), ("TANH_APPROXIMATION", lambda x: F.gelu(x, approximate="tanh")),
        ("SIGMOID_APPROXIMATION", lambda x: x * torch.sigmoid(1.702 * x)))),
]  # fmt: skip

REDUCTIONS = [
    *(reduction(f"reduce_{name}", want, axes=[1, -1], keep_dims=True) for name, want in (
        ("sum", lambda x: x.sum((1, 2), True)), ("mean", lambda x: x.mean((1, 2), True)),
        ("max", lambda x: x.amax((1, 2), True)), ("min", lambda x: x.amin((1, 2), True)),
        ("prod", lambda x: x.prod(2, True).prod(1, True)),
        ("l1_norm", lambda x: x.abs().sum((1, 2), True)),
        ("l2_norm", lambda x: x.square().sum((1, 2), True).sqrt()),
        ("sum_square", lambda x: x.square().sum((1, 2), True)),
        ("log_sum", lambda x: x.sum((1, 2), True).log()),
        ("log_sum_exp", lambda x: x.logsumexp((1, 2), True)))),
    reduction("reduce_sum", lambda x: x.sum(1), axes=[1], keep_dims=False),
    reduction("reduce_argmax", lambda x: x.argmax(1), axis=1, keep_dims=False),
    reduction("reduce_argmin", lambda x: x.argmin(-1, True), axis=-1, keep_dims=True),
    reduction("cumsum", lambda x: x.cumsum(1), axis=1),
    reduction("cumsum", lambda x: x.flip(1).cumsum(1).flip(1) - x, axis=1, exclusive=True,
              reverse=True),
]  # fmt: skip

SHAPES = [
    row("reshape", lambda mb, v: mb.reshape(x=v, shape=[0, -1, 2]),
        lambda x: x.reshape(2, 6, 2), X),
    row("reshape_like",
        lambda mb, a, b: mb.reshape_like(x=a, ref_tensors=(b,), begins=(0,), ends=(0,),
                                         end_masks=(True,)),
        lambda a, b: a.reshape(b.shape), X, draw(6, 4)),
    row("expand_dims", lambda mb, v: mb.expand_dims(x=v, axes=[-1, 0]),
        lambda x: x[None, ..., None],
        X),
    row("squeeze", lambda mb, v: mb.squeeze(x=v, axes=[0]), lambda x: x[0], PICTURE),
    row("transpose", lambda mb, v: mb.transpose(x=v, perm=[2, 0, 1]), lambda x: x.permute(2, 0, 1),
        X),
    row("reverse", lambda mb, v: mb.reverse(x=v, axes=[1]), lambda x: x.flip(1), X),
    row("reverse_sequence",
        lambda mb, v: mb.reverse_sequence(x=v, lengths=[2, 3], seq_axis=1, batch_axis=0),
        lambda x: torch.stack([torch.cat([x[0, :2].flip(0), x[0, 2:]]), x[1].flip(0)]), X),
    row("slice_by_index",
        lambda mb, v: mb.slice_by_index(x=v, begin=[1, -1, 3], end=[2, 0, 0], stride=[1, -1, -2],
                                        end_mask=[False, True, False],
                                        squeeze_mask=[True, False, False]),
        lambda x: x[1].flip(0)[:, [3, 1]], X),
    row("slice_by_size", lambda mb, v: mb.slice_by_size(x=v, begin=[0, 1, 1], size=[2, 1, -1]),
        lambda x: x[:, 1:2, 1:], X),
    row("slice_update",
        lambda mb, a, b: mb.slice_update(x=a, update=b, begin=[0, 1, 0], end=[2, 3, 4],
                                         stride=[1, 1, 2]),
        lambda a, b: torch.cat([a[:, :1], torch.stack([b[..., 0], a[:, 1:, 1], b[..., 1],
                                                       a[:, 1:, 3]], -1)], 1), X, draw(2, 2, 2)),
    row("concat", lambda mb, a, b: mb.concat(values=[a, b], axis=-1),
        lambda a, b: torch.cat([a, b], -1),
        X, Y),
    row("concat by turns", lambda mb, a, b: mb.concat(values=[a, b], axis=1, interleave=True),
        lambda a, b: torch.stack([a, b], 2).flatten(1, 2), X, Y),
    row("stack", lambda mb, a, b: mb.stack(values=[a, b], axis=1),
        lambda a, b: torch.stack([a, b], 1),
        X, Y),
    row("split", lambda mb, v: mb.split(x=v, num_splits=2, axis=2), lambda x: x.split(2, 2), X),
    row("split by sizes", lambda mb, v: mb.split(x=v, split_sizes=[1, 3], axis=-1),
        lambda x: x.split([1, 3], -1), X),
    row("tile", lambda mb, v: mb.tile(x=v, reps=[1, 2, 1]), lambda x: x.repeat(1, 2, 1), X),
    row("pad", lambda mb, v: mb.pad(x=v, pad=[1, 0, 0, 2], mode="constant", constant_val=0.5),
        lambda x: F.pad(x, (0, 2, 1, 0), value=0.5), X),
    row("pad by reflection", lambda mb, v: mb.pad(x=v, pad=[1, 2, 2, 1], mode="reflect"),
        lambda x: F.pad(x, (2, 1, 1, 2), mode="reflect"), PICTURE),
    row("pad by replication", lambda mb, v: mb.pad(x=v, pad=[1, 2, 2, 1], mode="replicate"),
        lambda x: F.pad(x, (2, 1, 1, 2), mode="replicate"), PICTURE),
    row("sliding_windows", lambda mb, v: mb.sliding_windows(x=v, axis=-1, size=2, stride=1),
        lambda x: torch.stack([x[..., i : i + 2] for i in range(3)], 2), X),
    row("pixel_shuffle", lambda mb, v: mb.pixel_shuffle(x=v, upscale_factor=2),
        lambda x: F.pixel_shuffle(x, 2), draw(1, 8, 2, 3)),
    row("pixel_unshuffle", lambda mb, v: mb.pixel_unshuffle(x=v, downscale_factor=np.uint32(2)),
        lambda x: F.pixel_unshuffle(x, 2), draw(1, 2, 4, 6)),
    row("depth_to_space and back",
        lambda mb, v: mb.space_to_depth(x=mb.depth_to_space(x=v, block_size=2), block_size=2),
        lambda x: x, draw(1, 8, 2, 3)),
    row("depth_to_space", lambda mb, v: mb.depth_to_space(x=v, block_size=2),
        lambda x: x.reshape(1, 4, 1).permute(0, 2, 1).reshape(1, 1, 2, 2), draw(1, 4, 1, 1)),
    row("space_to_batch and back",
        lambda mb, v: mb.batch_to_space(
            x=mb.space_to_batch(x=v, block_shape=[2, 2], paddings=[[1, 1], [0, 2]]),
            block_shape=[2, 2], crops=[[1, 1], [0, 2]]), lambda x: x, draw(1, 3, 4, 6)),
    row("space_to_batch",
        lambda mb, v: mb.space_to_batch(x=v, block_shape=[2, 2], paddings=[[0, 0], [0, 0]]),
        lambda x: torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]), draw(1, 2, 4,
        6)),
    row("crop", lambda mb, v: mb.crop(x=v, crop_height=[1, 2], crop_width=[0, 1]),
        lambda x: x[..., 1:-2, :-1], PICTURE),
    row("flatten2d", lambda mb, v: mb.flatten2d(x=v, axis=2), lambda x: x.reshape(6, 4), X),
    row("band_part", lambda mb, v: mb.band_part(x=v, lower=1, upper=0),
        lambda x: x.tril().triu(-1), X),
    row("shape", lambda mb, v: mb.shape(x=v), lambda x: whole(*x.shape), X),
    row("fill_like", lambda mb, v: mb.fill_like(ref_tensor=v, value=2.5),
        lambda x: torch.full_like(x, 2.5), X),
    row("range_1d", lambda mb, v: mb.range_1d(start=1, end=mb.reduce_max(x=v), step=2),
        lambda x: whole(1, 3, 5), whole(2, 7)),
]  # fmt: skip

INDEXING = [
    row("gather", lambda mb, x, i: mb.gather(x=x, indices=i, axis=0), lambda x, i: x[i.long()],
        TABLE, torch.tensor([[0, 4], [3, 1]], dtype=torch.int32)),
    row("gather from uint16", lambda mb, x, i: mb.cast(x=mb.gather(x=mb.cast(x=x, dtype="uint16"),
        indices=i, axis=0), dtype="int32"), lambda x, i: x[i.long()], whole(7, 8, 65535),
        whole(2, 0)),
    row("gather of a batch", lambda mb, x, i: mb.gather(x=x, indices=i, axis=1, batch_dims=1),
        lambda x, i: torch.stack([x[n][i[n].long()] for n in range(2)]), X,
        torch.tensor([[0, 2], [1, 1]], dtype=torch.int32)),
    row("gather_along_axis", lambda mb, x, i: mb.gather_along_axis(x=x, indices=i, axis=1),
        lambda x, i: x.gather(1, i.long()), TABLE, torch.tensor([[1], [0], [3], [2], [1]],
                                                                dtype=torch.int32)),
    row("gather_nd", lambda mb, x, i: mb.gather_nd(x=x, indices=i),
        lambda x, i: torch.stack([x[1, 2], x[0, 1]]), X,
        torch.tensor([[1, 2], [0, 1]], dtype=torch.int32)),
    *(row(f"scatter {mode}",
          lambda mb, x, i, u, m=mode: mb.scatter(data=x, indices=i, updates=u, axis=0, mode=m),
        want,
          TABLE, whole(3, 1), draw(2, 4)) for mode, want in (
        ("update", lambda x, i, u: x.index_copy(0, i.long(), u)),
        ("add", lambda x, i, u: x.index_add(0, i.long(), u)),
        ("sub", lambda x, i, u: x.index_add(0, i.long(), -u)),
        ("mul", lambda x, i, u: x.index_copy(0, i.long(), x[i.long()] * u)),
        ("div", lambda x, i, u: x.index_copy(0, i.long(), x[i.long()] / u)),
        ("max", lambda x, i, u: x.index_copy(0, i.long(), x[i.long()].maximum(u))),
        ("min", lambda x, i, u: x.index_copy(0, i.long(), x[i.long()].minimum(u))))),
    row("scatter_along_axis",
        lambda mb, x, i, u: mb.scatter_along_axis(data=x, indices=i, updates=u, axis=1, mode="add"),
        lambda x, i, u: x.scatter_add(1, i.long(), u), TABLE,
        torch.tensor([[1], [0], [3], [2], [1]], dtype=torch.int32), draw(5, 1)),
    row("scatter_nd",
        lambda mb, x, i, u: mb.scatter_nd(data=x, indices=i, updates=u, mode="update"),
        lambda x, i, u: x.index_put((i[:, 0].long(), i[:, 1].long()), u), X,
        torch.tensor([[1, 2], [0, 1]], dtype=torch.int32), draw(2, 4)),
    row("topk", lambda mb, v: mb.topk(x=v, k=2, axis=1), lambda x: x.topk(2, 1), X),
    row("topk of the smallest", lambda mb, v: mb.topk(x=v, k=2, axis=-1, ascending=True),
        lambda x: x.topk(2, -1, largest=False), X),
    row("argsort", lambda mb, v: mb.argsort(x=v, axis=-1, ascending=True),
        lambda x: x.argsort(-1), X),
    row("one_hot", lambda mb, v: mb.one_hot(indices=v, one_hot_vector_size=4, axis=0, on_value=2.0,
                                            off_value=-1.0),
        lambda i: F.one_hot(i.long(), 4).T * 3.0 - 1, whole(1, 3, 0)),
    row("non_zero", lambda mb, v: mb.non_zero(x=v), torch.nonzero, whole(0, 3, 0, -1)),
]  # fmt: skip

FAMILIES = {
    "elementwise": ELEMENTWISE,
    "reductions": REDUCTIONS,
    "shapes": SHAPES,
    "indexing": INDEXING,
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
    got, want = _found[family][row.name], row.want(*row.inputs)
    assert same(got, want), f"{got} is not {want}"
