"""`edge::linear_nbits` and `edge::linear_fdb` against ONNX Runtime's `MatMulNBits`, in one run.

    python tests/bench/kernels_linear.py [--size 2048] [--rows 1 2 4 8 16] [--groups 32 128]
        [--threads 1 2] [--layers 1 32] [--rounds 60] [--quantile 0.5] [--clock cpu] [--json]
        [--alone]

Each row is one session: a graph with an `If`, so that both sides run on the same threads, in turn,
round by round. `layers` square layers follow one another, each with weights of its own: one layer's
weights stay in the cache between runs, those of 32 come from memory as a language model's do.

Times are microseconds a layer, medians (or `--quantile`: on a machine with other work a low one is
that of the rounds that were not disturbed); `ratio` is the peer's over ours, `own` ours over our
time for the first number of rows. `read` are gigabytes of weights and scales a second, `share`
their share of what this machine reads in the same pattern (`numpy.max` on a buffer as large, with
as many threads). `floor` is the least time of the integer products alone: 64 to a `vpdpbusd`, at
the rate at which this machine runs it (needs a C++ compiler). `--clock cpu` counts the time of all
threads, for machines that have other work too.

`--alone` times the kernels without an engine, one layer on one thread: `near` with the weights in
the nearest cache that holds them, `far` behind 8 MB of other data.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from sdk.kernels.library import library
from sdk.kernels.linear_fdb import packing as fdb
from sdk.kernels.linear_nbits import packing as nbits

CLOCKS = {"wall": time.perf_counter_ns, "cpu": time.process_time_ns}
TITLE = (
    "kernel    bits peer             group threads layers rows"
    "    ours   peer ratio   own   read share  floor"
)
ALONE = "kernel    group rows   near    far"
FAR = 8 << 20
"""Bytes that are read between calls so that weights come from a cache further away."""
RATE = Path(__file__).with_name("vnni_rate.cc")
Branch = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]
Clock = Callable[[], int]


@dataclass(frozen=True)
class Row:
    """Ours and a peer, microseconds a layer."""

    kernel: str
    bits: int
    peer: str
    group: int
    threads: int
    layers: int
    rows: int
    ours: float
    theirs: float
    ratio: float
    own: float
    read: float
    """Gigabytes a second."""
    share: float
    floor: float | None

    def __str__(self) -> str:
        floor = "     -" if self.floor is None else f"{self.floor:6.0f}"
        return (
            f"{self.kernel:12} {self.bits} {self.peer:16} {self.group:5} {self.threads:7}"
            f" {self.layers:6} {self.rows:4} {self.ours:7.0f} {self.theirs:7.0f}"
            f" {self.ratio:5.2f} {self.own:5.2f} {self.read:6.1f} {self.share:5.0%} {floor}"
        )


@dataclass(frozen=True)
class Alone:
    """One kernel without an engine, microseconds a call."""

    kernel: str
    group: int
    rows: int
    near: float
    far: float

    def __str__(self) -> str:
        return f"{self.kernel:12} {self.group:4} {self.rows:4} {self.near:6.0f} {self.far:6.0f}"


@dataclass(frozen=True)
class Setting:
    """A square layer `size` x `size`."""

    size: int
    group: int
    threads: int
    layers: int
    rounds: int
    clock: Clock
    quantile: float

    def random(self, seed: int) -> np.random.Generator:
        return np.random.default_rng([seed, self.size, self.group])

    def names(self, i: int) -> tuple[str, str]:
        """Input and output of layer i."""
        return ("x" if i == 0 else f"h{i}", "y" if i == self.layers - 1 else f"h{i + 1}")


def _constant(name: str, values: np.ndarray) -> onnx.TensorProto:
    made: onnx.TensorProto = numpy_helper.from_array(np.ascontiguousarray(values), name)
    return made


def ours_nbits(s: Setting, bits: int) -> Branch:
    """Layers of `edge::linear_nbits`; the scales keep the size of the activations."""
    nodes, constants = [], []
    for i in range(s.layers):
        rng = s.random(i)
        q = torch.from_numpy(rng.integers(0, 1 << bits, (s.size, s.size), dtype=np.uint8))
        scales = torch.from_numpy(_scales(s, rng, bits)).half()
        constants += [
            _constant(f"w{i}", nbits.pack_weight(q, bits).numpy()),
            _constant(f"s{i}", nbits.pack_groups(scales).numpy()),
        ]
        x, y = s.names(i)
        nodes.append(
            helper.make_node(
                "linear_nbits", [x, f"w{i}", f"s{i}"], [y], domain="edge",
                columns=s.size, bits=bits, group=s.group,
            )
        )  # fmt: skip
    return nodes, constants


def ours_fdb(s: Setting, _bits: int) -> Branch:
    """Layers of `edge::linear_fdb`, 40 % of the bits of a plane set."""
    nodes, constants = [], []
    for i in range(s.layers):
        rng = s.random(i)
        planes = torch.from_numpy(rng.random((2, s.size, s.size)) < 0.4)
        alphas = np.stack([_scales(s, rng, 2), _scales(s, rng, 2)])
        scales = fdb.pack_scales(torch.from_numpy(alphas).half(), planes)
        constants += [
            _constant(f"w{i}", fdb.pack_planes(planes).numpy()),
            _constant(f"s{i}", scales.numpy()),
        ]
        x, y = s.names(i)
        nodes.append(
            helper.make_node(
                "linear_fdb", [x, f"w{i}", f"s{i}"], [y], domain="edge",
                columns=s.size, group=s.group,
            )
        )  # fmt: skip
    return nodes, constants


OURS = {"linear_nbits": ours_nbits, "linear_fdb": ours_fdb}


def peer(s: Setting, bits: int) -> Branch:
    """Layers of `MatMulNBits` at accuracy level 4, which also puts activations on an int8 grid."""
    nodes, constants = [], []
    for i in range(s.layers):
        rng = s.random(i)
        shape = (s.size, s.size // s.group, s.group * bits // 8)
        constants += [
            _constant(f"w{i}", rng.integers(0, 256, shape, dtype=np.uint8)),
            _constant(f"s{i}", _scales(s, rng, bits)),
        ]
        x, y = s.names(i)
        nodes.append(
            helper.make_node(
                "MatMulNBits", [x, f"w{i}", f"s{i}"], [y], domain="com.microsoft",
                K=s.size, N=s.size, bits=bits, block_size=s.group, accuracy_level=4,
            )
        )  # fmt: skip
    return nodes, constants


def _scales(s: Setting, rng: np.random.Generator, bits: int) -> np.ndarray:
    spread = ((4.0**bits - 1) / 12 + 0.25) ** 0.5
    values = rng.choice([-1.0, 1.0], (s.size, s.size // s.group)) / (spread * s.size**0.5)
    made: np.ndarray = values.astype(np.float32)
    return made


def _copied(branch: Branch, prefix: str) -> Branch:
    """Names of the branch's own: only `x` comes from outside."""
    nodes, constants = branch
    names = {name: f"{prefix}{name}" for node in nodes for name in (*node.input, *node.output)}
    names["x"] = "x"
    for node in nodes:
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for constant in constants:
        constant.name = names[constant.name]
    return nodes, constants


def session_of(s: Setting, ours: Branch, theirs: Branch) -> onnxruntime.InferenceSession:
    """`ours` where the input `first` is true, else `theirs`."""
    graphs = {}
    for key, branch in (("then_branch", ours), ("else_branch", theirs)):
        nodes, constants = _copied(branch, key[0])
        result = helper.make_tensor_value_info(f"{key[0]}y", TensorProto.FLOAT, None)
        graphs[key] = helper.make_graph(nodes, key, [], [result], constants)
    shape = ["rows", s.size]
    graph = helper.make_graph(
        [helper.make_node("If", ["first"], ["y"], **graphs)], "linear",
        [
            helper.make_tensor_value_info("first", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    domains = {"": 17, "com.microsoft": 1, "edge": 1}
    opsets = [helper.make_opsetid(name, version) for name, version in domains.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = s.threads
    options.add_session_config_entry("edge.threads", str(s.threads))
    options.register_custom_ops_library(str(library().path))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def interleaved(calls: Sequence[Callable[[], object]], rounds: int, clock: Clock) -> np.ndarray:
    """Nanoseconds [rounds, calls], the calls in turn; the first rounds are dropped."""
    times = np.zeros((rounds + 3, len(calls)))
    for i in range(len(times)):
        for j, call in enumerate(calls):
            start = clock()
            call()
            times[i, j] = clock() - start
    return times[3:]


def reader(size: int, threads: int, pool: ThreadPoolExecutor) -> Callable[[], object]:
    """Reads `size` bytes once."""
    parts = np.array_split(np.ones(max(size // 4, 1), np.float32), threads)
    if threads == 1:
        return parts[0].max
    return lambda: list(pool.map(np.max, parts))


def rate_of_products(threads: int) -> float | None:
    """`vpdpbusd` of 64 bytes a second on all threads; None where that cannot be measured."""
    compiler = shutil.which("c++")
    if compiler is None or library().isa not in ("avx512", "amx"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "rate.so"
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", RATE, "-o", built], check=True)
        code = ctypes.CDLL(str(built))
        code.vnni_rate.restype = ctypes.c_double
        return threads * max(float(code.vnni_rate()) for _ in range(20))


def measure(
    s: Setting, kernel: str, bits: int, peer_bits: int, numbers: Sequence[int]
) -> Iterator[Row]:
    """One kernel against one peer, for all numbers of rows."""
    ours = OURS[kernel](s, bits)
    size = sum(len(constant.raw_data) for constant in ours[1])
    session = session_of(s, ours, peer(s, peer_bits))
    rate, first = rate_of_products(s.threads), None
    with ThreadPoolExecutor(s.threads) as pool:
        read = reader(size, s.threads, pool)
        for rows in numbers:
            x = np.random.default_rng(rows).standard_normal((rows, s.size), dtype=np.float32)
            feeds = [{"x": x, "first": np.array(value)} for value in (True, False)]
            calls = [*(lambda feed=feed: session.run(None, feed) for feed in feeds), read]
            times = interleaved(calls, s.rounds, s.clock)
            mine, other, reading = np.quantile(times, s.quantile, axis=0) / 1e3
            first = first or mine
            products = rows * s.size**2 / 64 * (2 if kernel == "linear_fdb" else 1)
            yield Row(
                kernel, bits, f"MatMulNBits int{peer_bits}", s.group, s.threads, s.layers, rows,
                mine / s.layers, other / s.layers, other / mine,
                mine / first, size / mine / 1e3, reading / mine,
                None if rate is None or kernel == "linear_fdb" else products / rate * 1e6,
            )  # fmt: skip


def alone(options: argparse.Namespace) -> Iterator[Alone]:
    """Every kernel, group and number of rows."""
    others = np.ones(FAR // 4, np.float32)
    cases = [("linear_nbits", 4, group) for group in options.groups]
    cases += [("linear_fdb", 2, group) for group in options.fdb_groups]
    for (kernel, bits, group), rows in itertools.product(cases, options.rows):
        s = Setting(options.size, group, 1, 1, options.rounds, CLOCKS["wall"], options.quantile)
        weights = [numpy_helper.to_array(constant) for constant in OURS[kernel](s, bits)[1]]
        x = np.random.default_rng(rows).standard_normal((rows, s.size), dtype=np.float32)
        given = [s.size, bits, group] if kernel == "linear_nbits" else [s.size, group]
        call = library().prepare(kernel, [x, *weights], given)
        near = interleaved([call], s.rounds, s.clock)[:, 0]
        far = interleaved([others.max, call], s.rounds, s.clock)[:, 1]
        near_us, far_us = (np.quantile(times, s.quantile) / 1e3 for times in (near, far))
        yield Alone(kernel, group, rows, near_us, far_us)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--groups", type=int, nargs="*", default=[32, 128])
    parser.add_argument("--fdb-groups", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--quantile", type=float, default=0.5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def measured(options: argparse.Namespace) -> Iterator[Row]:
    """All combinations."""
    cases = [("linear_nbits", 4, 4, group) for group in options.groups]
    cases += [("linear_fdb", 2, bits, group) for bits in (2, 4) for group in options.fdb_groups]
    for threads, layers, case in itertools.product(options.threads, options.layers, cases):
        kernel, bits, peer_bits, group = case
        clock = CLOCKS[options.clock]
        s = Setting(options.size, group, threads, layers, options.rounds, clock, options.quantile)
        yield from measure(s, kernel, bits, peer_bits, options.rows)


def main() -> None:
    options = arguments()
    title, found = (ALONE, alone(options)) if options.alone else (TITLE, measured(options))
    if options.json:
        print(json.dumps([asdict(row) for row in found]))
        return
    print(title)
    for row in found:
        print(row, flush=True)


if __name__ == "__main__":
    main()
