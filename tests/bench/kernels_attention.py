"""`edge::tree_attention` against the engines' own operators that compute the same, in one run.

    python tests/bench/kernels_attention.py [--shapes llama-1b] [--tokens 1 8]
        [--cached 128 1024 4096] [--threads 1 2] [--dtypes float32 bfloat16 int8] [--rounds 40]
        [--clock cpu] [--json]

Ours is the kernel inside a session of the engine, rotary embedding and all, over a cache of 4,608
rows of which those cached are read in place. `exported` is the graph that a compiled language model
has without the kernel, `GroupQueryAttention` is ONNX Runtime's own operator on a cache that past
and present share, `ScaledDotProductAttention` is OpenVINO's on a past that has the new rows in it
already and needs no rotation any more, so it does less than ours. Contenders are called in turn,
round by round; `ratio` is the fastest of the engine's own over ours (medians), `share` the bytes of
cache that ours reads a second as a share of what this machine reads from memory with as many
threads. Own operators are always in float32. `--clock cpu` counts the processor time of all
threads, for machines that have other work too.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import openvino
import torch
from torch import Tensor, nn

from sdk.compilers.causal_lm import Pass
from sdk.extras import quiet
from sdk.kernels.library import library
from sdk.kernels.openvino import extension
from sdk.kernels.registry import spec_of

sys.path.insert(0, str(Path(__file__).parents[1]))

CAPACITY = 4608
SHAPES = {  # heads of queries, heads of keys, width
    "llama-1b": (32, 8, 64),
    "smollm2-360m": (15, 5, 64),
    "qwen3-0.6b": (16, 8, 128),
}
ELEMENTS = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
    torch.int8: onnx.TensorProto.INT8,
    torch.int64: onnx.TensorProto.INT64,
    torch.bool: onnx.TensorProto.BOOL,
}
CLOCKS = {"wall": time.perf_counter_ns, "cpu": time.process_time_ns}
Call = Callable[[], object]
Clock = Callable[[], int]


@dataclass(frozen=True)
class Row:
    """Medians in microseconds."""

    shape: str
    dtype: str
    engine: str
    threads: int
    tokens: int
    cached: int
    ours: float
    own: dict[str, float]
    ratio: float
    gigabytes_per_second: float
    share: float


@dataclass(frozen=True)
class Problem:
    """Inputs of one layer, a chain of tokens behind a cache."""

    tokens: int
    cached: int
    heads: tuple[int, int]
    query: Tensor
    key: Tensor
    value: Tensor
    past: tuple[Tensor, Tensor]
    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, shape: tuple[int, int, int], tokens: int, cached: int) -> Problem:
        torch.manual_seed(0)
        queries, heads, width = shape
        angles = torch.outer(
            torch.arange(cached, cached + tokens), 10000.0 ** -torch.arange(0, 1, 2 / width)
        )
        angles = torch.cat([angles, angles], 1)
        return cls(
            tokens, cached, (queries, heads),
            torch.randn(tokens, queries, width), torch.randn(tokens, heads, width),
            torch.randn(tokens, heads, width),
            (torch.randn(heads, CAPACITY, width), torch.randn(heads, CAPACITY, width)),
            angles.cos(), angles.sin(),
        )  # fmt: skip

    @property
    def width(self) -> int:
        return self.query.shape[2]

    @property
    def mask(self) -> Tensor:
        return torch.ones(self.tokens, self.tokens, dtype=torch.bool).tril()

    def shown(self) -> tuple[Tensor, Tensor]:
        """The past without the rows that are not there yet."""
        keys, values = (rows[:, : self.cached].contiguous() for rows in self.past)
        return keys, values

    def bytes(self, dtype: torch.dtype) -> int:
        scale = 4 if dtype == torch.int8 else 0
        return 2 * self.heads[1] * self.cached * (self.width * dtype.itemsize + scale)

    def ours(self, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, float]]:
        """The kernel's tensors and attributes."""
        past, scales = list(self.past), []
        if dtype == torch.int8:
            scales = [rows.abs().amax(-1) / 127 for rows in past]
            past = [(r / s[..., None]).round() for r, s in zip(past, scales, strict=True)]
        tensors = [
            self.query, self.key, self.value, *(rows.to(dtype) for rows in past),
            torch.tensor([self.cached]), torch.arange(self.cached, self.cached + self.tokens),
            self.mask, self.cos, self.sin, *scales,
        ]  # fmt: skip
        return tensors, {"scale": self.width**-0.5, "softcap": 0.0, "window": 0}


class Exported(nn.Module):
    """A layer of a compiled step: rotary embedding as transformers has it, then `Pass`."""

    def __init__(self, heads: tuple[int, int], width: int) -> None:
        super().__init__()
        self.queries, self.keys, self.width = *heads, width

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor,
        past_mask: Tensor, new_mask: Tensor, past_keys: Tensor, past_values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        q, k, v = (
            x.reshape(1, -1, heads, self.width).transpose(1, 2)
            for x, heads in ((query, self.queries), (key, self.keys), (value, self.keys))
        )
        q, k = (x * cos[None, None] + _rotate_half(x) * sin[None, None] for x in (q, k))
        run = Pass(torch.zeros(1, 1), past_mask, new_mask, [(past_keys, past_values)])
        run.update(k, v, 0)
        mixed = run.attend(q, self.width**-0.5, None, None)
        return mixed.reshape(1, -1, self.queries * self.width), *run.made[0]


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat([-second, first], -1)


def exported_model(problem: Problem) -> tuple[bytes, dict[str, Tensor]]:
    """The ONNX file of `Exported` and its inputs."""
    keys, values = problem.shown()
    feed = {
        "query": problem.query.reshape(1, problem.tokens, -1),
        "key": problem.key.reshape(1, problem.tokens, -1),
        "value": problem.value.reshape(1, problem.tokens, -1),
        "cos": problem.cos,
        "sin": problem.sin,
        "past_mask": torch.ones(problem.tokens, problem.cached, dtype=torch.bool),
        "new_mask": problem.mask,
        "past_keys": keys,
        "past_values": values,
    }
    return onnx_of(Exported(problem.heads, problem.width).eval(), feed), feed


def onnx_of(module: nn.Module, feed: dict[str, Tensor]) -> bytes:
    """What torch's exporter makes of a module."""
    with quiet("torch"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch copies a graph by its own old names
        program = torch.onnx.export(
            module, tuple(feed.values()), dynamo=True, optimize=True, verbose=False,
            input_names=list(feed),
        )  # fmt: skip
    assert program is not None
    buffer = io.BytesIO()
    program.save(buffer)
    return buffer.getvalue()


def kernel_model(tensors: list[Tensor], attributes: dict[str, float], dtype: torch.dtype) -> bytes:
    """A model of one node of the domain `edge`."""
    helper, spec = onnx.helper, spec_of("tree_attention")
    names = [p.name for p in spec.tensors][: len(tensors)]
    values = [
        helper.make_tensor_value_info(n, ELEMENTS[t.dtype], t.shape)
        for n, t in zip(names, tensors, strict=True)
    ]
    kinds = [torch.float32, dtype, dtype, torch.float32, torch.float32]
    outs = [
        helper.make_tensor_value_info(f"y{i}", ELEMENTS[kind], None) for i, kind in enumerate(kinds)
    ]
    outputs = [out.name for out in outs]
    node = helper.make_node("tree_attention", names, outputs, domain="edge", **attributes)
    graph = helper.make_graph([node], "kernel", values, outs)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("edge", spec.version)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def group_query_model(problem: Problem) -> bytes:
    """GroupQueryAttention of ONNX Runtime, which turns and writes the new rows itself."""
    helper, float_ = onnx.helper, onnx.TensorProto.FLOAT
    queries, heads = problem.heads
    names = ["query", "key", "value", "past_key", "past_value", "seqlens", "total", "cos", "sin"]
    w, d, rows = problem.tokens, problem.width, CAPACITY
    shapes = [(1, w, queries * d), (1, w, heads * d), (1, w, heads * d), (1, heads, rows, d),
              (1, heads, rows, d), (1,), (1,), (rows, d // 2), (rows, d // 2)]  # fmt: skip
    kinds = [onnx.TensorProto.INT32 if n in ("seqlens", "total") else float_ for n in names]
    node = helper.make_node(
        "GroupQueryAttention", names, ["output", "present_key", "present_value"],
        domain="com.microsoft", num_heads=queries, kv_num_heads=heads, do_rotary=1,
    )  # fmt: skip
    values = [helper.make_tensor_value_info(*v) for v in zip(names, kinds, shapes, strict=True)]
    results = [helper.make_tensor_value_info(n, float_, None) for n in node.output]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "gqa", values, results)
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(made.SerializeToString())


def session_of(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("edge.threads", str(threads))
    options.add_session_config_entry("session.force_spinning_stop", "1")  # it would slow the others
    options.register_custom_ops_library(str(library().path))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def bound(session: onnxruntime.InferenceSession, feed: dict[str, Tensor], *, same: bool) -> Call:
    """A call on these very buffers; with `same`, `present_*` are the buffers of `past_*`."""
    binding = session.io_binding()
    for name, t in feed.items():
        binding.bind_input(name, "cpu", 0, _element(t), tuple(t.shape), t.data_ptr())
    for out in session.get_outputs():
        past = feed.get(out.name.replace("present", "past")) if same else None
        if past is None:
            binding.bind_output(out.name, "cpu")
        else:
            binding.bind_output(
                out.name, "cpu", 0, _element(past), tuple(past.shape), past.data_ptr()
            )

    def call(_alive: object = feed) -> None:
        session.run_with_iobinding(binding)

    return call


def _element(tensor: Tensor) -> int:
    return onnx.TensorProto.INT32 if tensor.dtype == torch.int32 else ELEMENTS[tensor.dtype]


def onnxruntime_calls(problem: Problem, dtype: torch.dtype, threads: int) -> dict[str, Call]:
    tensors, attributes = problem.ours(dtype)
    names = [p.name for p in spec_of("tree_attention").tensors]
    model, feed = exported_model(problem)
    total, half = problem.cached + problem.tokens, problem.width // 2
    angles = torch.outer(torch.arange(CAPACITY), 10000.0 ** -torch.arange(0, 1, 1 / half))
    group = {
        "query": feed["query"], "key": feed["key"], "value": feed["value"],
        "past_key": problem.past[0].clone()[None], "past_value": problem.past[1].clone()[None],
        "seqlens": torch.tensor([total - 1], dtype=torch.int32),
        "total": torch.tensor([total], dtype=torch.int32),
        "cos": angles.cos(), "sin": angles.sin(),
    }  # fmt: skip
    ours = session_of(kernel_model(tensors, attributes, dtype), threads)
    return {
        "ours": bound(ours, dict(zip(names, tensors, strict=False)), same=False),
        "exported": bound(session_of(model, threads), feed, same=False),
        "GroupQueryAttention": bound(
            session_of(group_query_model(problem), threads), group, same=True
        ),
    }


def attention_model(problem: Problem) -> tuple[openvino.Model, list[Tensor]]:
    """ScaledDotProductAttention over past and new rows together, heads that share keys as rows."""
    ops, rows = openvino.opset13, problem.cached + problem.tokens
    queries, heads = problem.heads
    groups, d = queries // heads, problem.width
    shapes = [(1, heads, groups * problem.tokens, d), *[(1, heads, rows, d)] * 2]
    given = [ops.parameter(list(s), openvino.Type.f32) for s in shapes]
    mask = ops.parameter([1, 1, groups * problem.tokens, rows], openvino.Type.f32)
    node = ops.scaled_dot_product_attention(*given, mask)
    tensors = [torch.randn(*s) for s in shapes]
    seen = torch.cat(
        [torch.ones(problem.tokens, problem.cached, dtype=torch.bool), problem.mask], 1
    )
    bias = torch.zeros(seen.shape).masked_fill(~seen, -1e30).repeat(groups, 1)[None, None]
    return openvino.Model([node.output(0)], [*given, mask]), [*tensors, bias]


def openvino_call(model: openvino.Model, tensors: list[Tensor], threads: int, core: Any) -> Call:
    config = {
        "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY",
    }  # fmt: skip
    request = core.compile_model(model, "CPU", config).create_infer_request()
    for i, tensor in enumerate(tensors):
        request.set_input_tensor(i, _openvino_tensor(tensor))

    def call(_alive: object = tensors) -> None:
        request.infer()

    return call


def _openvino_tensor(tensor: Tensor) -> openvino.Tensor:
    """On the same memory; NumPy has no bfloat16."""
    if tensor.dtype != torch.bfloat16:
        return openvino.Tensor(tensor.numpy(), shared_memory=True)
    words = tensor.view(torch.int16).numpy()
    return openvino.Tensor(words, list(tensor.shape), openvino.Type.bf16)


def openvino_core() -> Any:
    """With the kernels."""
    core = openvino.Core()
    core.add_extension(str(extension()[1]))
    return core


def openvino_calls(problem: Problem, dtype: torch.dtype, threads: int) -> dict[str, Call]:
    core = openvino_core()
    tensors, attributes = problem.ours(dtype)
    ours = core.read_model(kernel_model(tensors, attributes, dtype))
    model, feed = exported_model(problem)
    return {
        "ours": openvino_call(ours, tensors, threads, core),
        "exported": openvino_call(core.read_model(model), list(feed.values()), threads, core),
        "ScaledDotProductAttention": openvino_call(*attention_model(problem), threads, core),
    }


CALLS = {"onnxruntime": onnxruntime_calls, "openvino": openvino_calls}


def medians(calls: dict[str, Call], rounds: int, clock: Clock) -> dict[str, float]:
    """Microseconds a call, contenders in turn; the first rounds are left out."""
    times: dict[str, list[int]] = {name: [] for name in calls}
    for round_ in range(rounds + 5):
        for name, call in calls.items():
            call()  # brings its threads and caches back
            start = clock()
            call()
            if round_ >= 5:
                times[name].append(clock() - start)
    return {name: statistics.median(found) / 1e3 for name, found in times.items()}


def read_bandwidth(threads: int, clock: Clock) -> float:
    """Gigabytes a second that this machine reads from memory: the best of some passes."""
    torch.set_num_threads(threads)
    block = torch.ones(1 << 27)
    best = 0.0
    for _ in range(5):
        start = clock()
        block.sum()
        best = max(best, block.numel() * 4 / (clock() - start))
    return best


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    clock = CLOCKS[arguments.clock]
    for threads in arguments.threads:
        bandwidth = read_bandwidth(threads, clock)
        for shape in arguments.shapes:
            for cached in arguments.cached:
                for tokens in arguments.tokens:
                    problem = Problem.of(SHAPES[shape], tokens, cached)
                    for name in arguments.dtypes:
                        for engine in arguments.engines:
                            calls = CALLS[engine](problem, getattr(torch, name), threads)
                            found = medians(calls, arguments.rounds, clock)
                            ours = found.pop("ours")
                            speed = problem.bytes(getattr(torch, name)) / ours / 1e3
                            yield Row(
                                shape, name, engine, threads, tokens, cached, ours, found,
                                min(found.values()) / ours, speed, speed / bandwidth,
                            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["llama-1b"], choices=SHAPES)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--cached", nargs="+", type=int, default=[128, 1024, 4096])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--engines", nargs="+", default=list(CALLS), choices=CALLS)
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args()
    for row in measure(arguments):
        if arguments.json:
            print(json.dumps(asdict(row)), flush=True)
            continue
        own = ", ".join(f"{name} {time_:,.0f}" for name, time_ in row.own.items())
        print(
            f"{row.shape} {row.dtype} {row.engine} {row.threads} threads, {row.tokens} new over"
            f" {row.cached}: ours {row.ours:,.0f} us, {own}; ratio {row.ratio:.2f},"
            f" {row.gigabytes_per_second:.1f} GB/s, {row.share:.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
