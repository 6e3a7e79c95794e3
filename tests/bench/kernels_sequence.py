"""The kernels on sequences against what computes the same without them, in one run.

    python tests/bench/kernels_sequence.py [--only dag_decode sample_verify ...] [--threads 1 2]
        [--rounds 30] [--clock cpu] [--json]

Ours is the kernel as one node in a session of ONNX Runtime. `engine` is the graph that the exporter
makes of the kernel's reference, of ONNX Runtime's own operators; for a residual quantizer one with
the codebooks as constants, turned around and their lengths known. `torch` is the reference in
eager PyTorch, `numpy` the sampling of the generation loop, and `loop` the same by the kernel. All
are called in turn, round by round, with the buffers bound; times are medians in microseconds, and
`ratio` is the fastest of the others over ours. `--clock cpu` counts processor time of all threads,
for machines that have other work too.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.kernels_attention import onnx_of, session_of

from sdk.kernels.dag_decode.spec import graph
from sdk.kernels.dag_forward.spec import example as targets_example
from sdk.kernels.library import library
from sdk.kernels.registry import spec_of
from sdk.runtimes.generation import transforms, uniforms
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.sampling import NativeSampling

CLOCKS = {"wall": time.perf_counter_ns, "cpu": time.process_time_ns}
ELEMENTS = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float64: onnx.TensorProto.DOUBLE,
    torch.int64: onnx.TensorProto.INT64,
}
Call = Callable[[], object]


@dataclass(frozen=True)
class Problem:
    """One call of a kernel, and other ways to compute it."""

    kernel: str
    name: str
    tensors: tuple[Tensor, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Call] = field(default_factory=dict)
    module: nn.Module | None = None
    """Stands for the reference in the engine's graph."""


@dataclass(frozen=True)
class Row:
    """Medians in microseconds."""

    kernel: str
    name: str
    threads: int
    ours: float
    others: dict[str, float]
    ratio: float


class Reference(nn.Module):
    """A kernel's reference with its attributes set."""

    def __init__(self, name: str, attributes: dict[str, Any]) -> None:
        super().__init__()
        self.function = functools.partial(spec_of(name).reference, **attributes)

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


class Quantizer(nn.Module):
    """Residual quantization with its codebooks known when the graph is made."""

    def __init__(self, codebooks: Tensor) -> None:
        super().__init__()
        self.books = codebooks
        self.turned = codebooks.transpose(1, 2).contiguous()
        self.halves = (codebooks * codebooks).sum(-1) / 2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        residual, total, codes = x, torch.zeros_like(x), []
        for book, turned, half in zip(self.books, self.turned, self.halves, strict=True):
            code = (residual @ turned - half).argmax(-1)
            chosen = book[code]
            residual, total = residual - chosen, total + chosen
            codes.append(code)
        return torch.stack(codes, -1), total


class Decoder(nn.Module):
    """The other direction, also with constants."""

    def __init__(self, codebooks: Tensor) -> None:
        super().__init__()
        self.books = codebooks

    def forward(self, codes: Tensor) -> Tensor:
        return sum(book[codes[..., i]] for i, book in enumerate(self.books))


def dag_problems() -> Iterator[Problem]:
    """The shapes of DASpeech: as many vertices as half the frames of 10 ms."""
    rng = np.random.default_rng(0)
    ahead = {"viterbi": False}
    best = {"viterbi": True, "length_power": 1.0, "longest": 0.25}
    for name, setting, batch, size in [
        ("lookahead", ahead, 1, 128), ("joint Viterbi", best, 1, 128),
        ("joint Viterbi", best, 4, 128), ("joint Viterbi", best, 1, 256),
    ]:  # fmt: skip
        tensors = graph(rng, batch, size, np.full(batch, size))
        yield Problem("dag_decode", f"{name} {batch}x{size}", tensors, setting)
    for batch, tokens, size, width in [(1, 32, 128, 256), (4, 32, 128, 256), (1, 64, 256, 512)]:
        links, match, _, _, hidden = targets_example(rng, batch, tokens, size, width)
        full = torch.full((batch,), size), torch.full((batch,), tokens)
        name = f"{batch}x{tokens}x{size}x{width}"
        yield Problem("dag_forward", name, (links, match, *full, hidden))


def quantizer_problems() -> Iterator[Problem]:
    """A second of EnCodec's shape, one and ten frames of it, and of DM-Codec's, 50 Hz."""
    rng = np.random.default_rng(0)
    for rows, books, codes, width in [
        (1, 8, 1024, 128), (10, 8, 1024, 128), (50, 8, 1024, 128), (500, 8, 1024, 128),
        (50, 8, 1024, 1024),
    ]:  # fmt: skip
        vectors = torch.from_numpy(rng.standard_normal((books, codes, width), np.float32))
        x = torch.from_numpy(rng.standard_normal((rows, width), np.float32))
        name = f"{rows}x{width}, {books} of {codes}"
        yield Problem("residual_vq", name, (x, vectors), module=Quantizer(vectors))
        picked = torch.from_numpy(rng.integers(0, codes, (rows, books)))
        yield Problem("residual_vq_decode", name, (picked, vectors), module=Decoder(vectors))


def sampling_problems() -> Iterator[Problem]:
    """Rows as flat as a language model's where it is unsure: about 10 bits of entropy and less."""
    rng = np.random.default_rng(0)
    fast = NativeSampling(library())
    for setting in ({}, {"top_k": 50}, {"top_p": 0.95}, {"top_k": 50, "top_p": 0.95}):
        for rows, vocabulary in [(1, 50_257), (5, 50_257)]:
            logits = 3.5 * rng.standard_normal((rows, vocabulary)).astype(np.float32)
            config = GenerationConfig(temperature=0.8, **setting)
            tensors = (
                torch.from_numpy(logits),
                torch.from_numpy(rng.integers(0, vocabulary, rows - 1)),
                torch.from_numpy(rng.random((rows, 2))),
            )
            others = loop_calls(logits[0], config, fast) if rows == 1 else {}
            attributes = {"temperature": 0.8, **setting}
            name = f"{rows}x{vocabulary} {setting or 'all'}"
            yield Problem("sample_verify", name, tensors, attributes, others)


def loop_calls(row: np.ndarray, config: GenerationConfig, fast: NativeSampling) -> dict[str, Call]:
    """One token of the generation loop: from logits to a distribution, from that to a token."""

    def by_kernel() -> int:
        found = fast.row(row, config)
        assert found is not None
        return fast.pick(found, 0.37)

    return {
        "numpy": lambda: uniforms.pick_by_numpy(transforms.by_numpy(row, config), 0.37),
        "loop": by_kernel,
    }


def kernel_model(problem: Problem) -> bytes:
    """A model of one node of the domain `edge`."""
    helper, spec = onnx.helper, spec_of(problem.kernel)
    values = [
        helper.make_tensor_value_info(f"x{i}", ELEMENTS[t.dtype], list(t.shape))
        for i, t in enumerate(problem.tensors)
    ]
    outputs = spec.reference(*problem.tensors, **problem.attributes)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    made = [
        helper.make_tensor_value_info(f"y{i}", ELEMENTS[t.dtype], None)
        for i, t in enumerate(outputs)
    ]
    bound_values = spec.bound(problem.attributes)
    attributes = {
        p.name: int(value) if p.kind != "float" else float(value)
        for p, value in zip(spec.attributes, bound_values, strict=True)
    }
    node = helper.make_node(
        spec.short, [v.name for v in values], [v.name for v in made], domain="edge", **attributes
    )
    whole = helper.make_graph([node], "kernel", values, made)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("edge", spec.version)]
    return bytes(helper.make_model(whole, opset_imports=opsets, ir_version=10).SerializeToString())


def on_engine(model: bytes, tensors: tuple[Tensor, ...], threads: int) -> Call:
    session = session_of(model, threads)
    binding = session.io_binding()
    for value, t in zip(session.get_inputs(), tensors, strict=True):
        kind, shape = ELEMENTS[t.dtype], tuple(t.shape)
        binding.bind_input(value.name, "cpu", 0, kind, shape, t.data_ptr())
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")

    def call(_alive: object = tensors) -> None:
        session.run_with_iobinding(binding)

    return call


def calls_of(problem: Problem, threads: int) -> dict[str, Call]:
    spec = spec_of(problem.kernel)
    module = problem.module or Reference(problem.kernel, problem.attributes)
    tensors = problem.tensors if problem.module is None else problem.tensors[:1]
    feed = {f"x{i}": t for i, t in enumerate(tensors)}

    def in_torch() -> object:
        with torch.inference_mode():
            return spec.reference(*problem.tensors, **problem.attributes)

    return {
        "ours": on_engine(kernel_model(problem), problem.tensors, threads),
        "engine": on_engine(onnx_of(module.eval(), feed), tensors, threads),
        "torch": in_torch,
        **problem.others,
    }


def measured(calls: dict[str, Call], rounds: int, clock: Callable[[], int]) -> dict[str, float]:
    """Medians of calls in turn; quick ones are repeated to fill a millisecond."""
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter_ns()
        call()
        repeats[name] = max(1, 1_000_000 // max(time.perf_counter_ns() - start, 1))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            for _ in range(repeats[name]):
                call()
            times[name].append((clock() - start) / 1000 / repeats[name])
    return {name: statistics.median(values) for name, values in times.items()}


def rows(only: list[str], threads: list[int], rounds: int, clock: str) -> Iterator[Row]:
    for problems in (dag_problems, quantizer_problems, sampling_problems):
        for problem in problems():
            if only and problem.kernel not in only:
                continue
            for count in threads:
                torch.set_num_threads(count)
                found = measured(calls_of(problem, count), rounds, CLOCKS[clock])
                ours = found.pop("ours")
                ratio = min(v for name, v in found.items() if name != "loop") / ours
                yield Row(problem.kernel, problem.name, count, ours, found, ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", default=[], help="names of kernels; default: all")
    parser.add_argument("--threads", type=int, nargs="*", default=[1])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", action="store_true", help="one object a line")
    given = parser.parse_args()
    for row in rows(given.only, given.threads, given.rounds, given.clock):
        if given.json:
            print(json.dumps(asdict(row)), flush=True)
            continue
        others = "  ".join(f"{name} {value:9.1f}" for name, value in row.others.items())
        name = f"{row.kernel} {row.name}"
        print(f"{name:55} {row.threads} threads  ours {row.ours:8.1f}  {others}  x{row.ratio:.1f}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
