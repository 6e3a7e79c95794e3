"""`edge::group_norm_silu` against the engines' own operators that compute the same, in one run.

    python tests/bench/kernels_group_norm.py [--threads 1 2] [--rounds 40] [--clock cpu] [--json]

Shapes are those of Stable Diffusion's U-Net and decoder, and of a small U-Net, in float32 and
32 groups. `exported` is what torch's exporter makes of GroupNorm and SiLU, on ONNX Runtime and on
OpenVINO; `GroupNormalization` is the operator of that name with Sigmoid and Mul on ONNX Runtime,
with Swish on OpenVINO. Contenders are called in turn, round by round; `ratio` is the fastest of the
engine's own over ours (medians), in microseconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import onnx
import openvino
import torch
from kernels_attention import (
    CLOCKS,
    ELEMENTS,
    Call,
    bound,
    medians,
    onnx_of,
    openvino_call,
    openvino_core,
    session_of,
)
from torch import Tensor, nn

SHAPES = (
    (1, 64, 32, 32), (2, 1280, 16, 16), (2, 640, 32, 32), (2, 320, 64, 64), (1, 128, 256, 256),
)  # fmt: skip
GROUPS = 32


@dataclass(frozen=True)
class Row:
    """Medians in microseconds."""

    shape: tuple[int, ...]
    engine: str
    threads: int
    ours: float
    own: dict[str, float]
    ratio: float


def module_of(channels: int) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.GroupNorm(GROUPS, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(norm, nn.SiLU()).eval()


def tensors_of(shape: tuple[int, ...]) -> list[Tensor]:
    norm: Any = module_of(shape[1])[0]  # type: ignore[index]
    return [torch.randn(shape), norm.weight.detach(), norm.bias.detach()]


def node_model(nodes: list[onnx.NodeProto], tensors: list[Tensor], domain: str) -> bytes:
    """A model of nodes from x, weight and bias, which are constants, to y."""
    helper, float_ = onnx.helper, ELEMENTS[torch.float32]
    x = helper.make_tensor_value_info("x", float_, tensors[0].shape)
    y = helper.make_tensor_value_info("y", float_, tensors[0].shape)
    constants = [
        onnx.numpy_helper.from_array(t.numpy(), name)
        for t, name in zip(tensors[1:], ("weight", "bias"), strict=True)
    ]
    graph = helper.make_graph(nodes, "norm", [x], [y], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def kernel_nodes() -> list[onnx.NodeProto]:
    return [
        onnx.helper.make_node(
            "group_norm_silu", ["x", "weight", "bias"], ["y"],
            domain="edge", groups=GROUPS, eps=1e-5, silu=1,
        )
    ]  # fmt: skip


def own_nodes() -> list[onnx.NodeProto]:
    make = onnx.helper.make_node
    return [
        make("GroupNormalization", ["x", "weight", "bias"], ["n"], num_groups=GROUPS, epsilon=1e-5),
        make("Sigmoid", ["n"], ["s"]),
        make("Mul", ["n", "s"], ["y"]),
    ]


def onnxruntime_calls(tensors: list[Tensor], threads: int) -> dict[str, Call]:
    exported = onnx_of(module_of(tensors[0].shape[1]), {"x": tensors[0]})
    models = {
        "ours": node_model(kernel_nodes(), tensors, "edge"),
        "exported": exported,
        "GroupNormalization": node_model(own_nodes(), tensors, "edge"),
    }
    return {
        name: bound(session_of(model, threads), {"x": tensors[0]}, same=False)
        for name, model in models.items()
    }


def openvino_calls(tensors: list[Tensor], threads: int) -> dict[str, Call]:
    core, ops = openvino_core(), openvino.opset13
    exported = onnx_of(module_of(tensors[0].shape[1]), {"x": tensors[0]})
    x = ops.parameter(list(tensors[0].shape), openvino.Type.f32)
    scale, shift = (ops.constant(t.numpy()) for t in tensors[1:])
    norm = ops.swish(ops.group_normalization(x, scale, shift, GROUPS, 1e-5))
    own = openvino.Model([norm.output(0)], [x])
    ours = core.read_model(node_model(kernel_nodes(), tensors, "edge"))
    return {
        "ours": openvino_call(ours, tensors[:1], threads, core),
        "exported": openvino_call(core.read_model(exported), tensors[:1], threads, core),
        "GroupNormalization": openvino_call(own, tensors[:1], threads, core),
    }


CALLS = {"onnxruntime": onnxruntime_calls, "openvino": openvino_calls}


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    for threads in arguments.threads:
        for shape in SHAPES:
            for engine, make in CALLS.items():
                calls = make(tensors_of(shape), threads)
                found = medians(calls, arguments.rounds, CLOCKS[arguments.clock])
                ours = found.pop("ours")
                yield Row(shape, engine, threads, ours, found, min(found.values()) / ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args()
    for row in measure(arguments):
        if arguments.json:
            print(json.dumps(asdict(row)), flush=True)
            continue
        own = ", ".join(f"{name} {time:,.0f}" for name, time in row.own.items())
        shape = "x".join(map(str, row.shape))
        print(
            f"{shape} {row.engine} {row.threads} threads: ours {row.ours:,.0f} us, {own};"
            f" ratio {row.ratio:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
