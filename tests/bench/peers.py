"""int8 builds of the SDK against those of Olive, optimum, ONNX Runtime and NNCF at their defaults.

    python tests/bench/peers.py --data FOLDER [--student RUN] [--envs FOLDER] [--keep FOLDER]

FOLDER of `--data` holds what `mobilenet_v2.py` reads, and `cifar10/`. RUN is the folder of a
finished run of the recipe mobilenet_kd (`edge recipe run mobilenet_kd --preset full`); without it
its `tiny` preset is trained first. Each peer is installed into an environment of its own below
`--envs`, with the engines' releases of this environment. With `--keep`, builds stay in that folder,
and those that are there already are only measured again.

All compilers get the same fp32 model and the same calibration inputs. Ours is the artifact that
`sdk.compile` keeps: its metric is agreement with fp32 on the calibration inputs, and where int8 is
slower than fp32 it keeps fp32. All files of one engine are then timed in one process in turn, call
by call, with the same number of threads.

`--clock cpu` counts the time that the process computed in place of the time that went by: with one
thread it is the same on a quiet machine, and all that can be compared on one that others use.

`ratio` is the median over the rounds of our time by the peer's, with its 95 % interval. A row
`holds` where it is at most 1 and our accuracy is not below the peer's by more than chance (95 %,
counted over the check inputs on which only one of the two is right); `even` where the interval of
the ratio spans 1; it `misses` otherwise. Exit code 1: a row misses.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import openvino as ov
from intervals import median_of
from mobilenet_v2 import Agreement
from peer_cases import Case, cases
from peer_environments import PEERS, Peer, PeerError

import sdk
from sdk.compilers.capture import capture
from sdk.compilers.quantize import quantize
from sdk.model import Model
from sdk.signature import Array
from sdk.timing import Latency

ENGINES = ("onnxruntime", "openvino")
BATCH = 10
MAX_DROP = 0.03
CLOCKS = {"wall": time.perf_counter_ns, "cpu": time.process_time_ns}
Call = Callable[[Array], Array]


@dataclass(frozen=True)
class Build:
    """One file on one engine, at one number of threads."""

    name: str
    call: Call
    bytes: int
    right: Array
    """For each check input, whether its class is the right one."""


@dataclass(frozen=True)
class Row:
    """Our build beside one peer's."""

    model: str
    engine: str
    threads: int
    peer: str
    metric: str
    kept: str
    accuracy: float
    peer_accuracy: float
    only_ours_right: int
    only_peer_right: int
    bytes: int
    peer_bytes: int
    latency: Latency
    peer_latency: Latency
    ratio: float
    interval: tuple[float, float]

    @property
    def accurate(self) -> bool:
        """Whether we are not behind by more than chance: two standard errors of the counts."""
        behind = self.only_peer_right - self.only_ours_right
        return bool(behind <= 1.96 * np.sqrt(self.only_peer_right + self.only_ours_right))

    @property
    def verdict(self) -> str:
        """`holds`, `even` or `misses`."""
        if not self.accurate or self.interval[0] > 1:
            return "misses"
        return "holds" if self.ratio <= 1 else "even"


def compile_ours(case: Case, engine: str, precision: str, folder: Path, shared: Any) -> Path:
    """Our artifact for one engine."""
    path = folder / f"ours-{engine}-{precision}.edge"
    if path.is_dir():
        return path
    batches = _batches(case.calibration)
    sdk.compile(
        shared if precision == "int8" else case.model,
        inputs={case.input: case.calibration[:1]},
        dynamic={case.input: {0: sdk.Dim("batch", 1, 1, 64)}},
        target=f"{engine}:cpu:{precision}",
        output=path,
        calibration=batches,
        check=batches[:1],
        metric=Agreement(case.calibration),
        max_drop=MAX_DROP,
    )
    return path


def shared_program(case: Case) -> Any:
    """The quantized program that all engines share."""
    inputs = {case.input: case.calibration[:1]}
    dynamic = {case.input: {0: sdk.Dim("batch", 1, 1, 64)}}
    return quantize(capture(case.model, inputs, dynamic), [
        {case.input: batch} for batch in _batches(case.calibration)
    ])  # fmt: skip


def open_ours(case: Case, path: Path, threads: int) -> tuple[Call, Model]:
    """The artifact's session, called as directly as the peers' files are."""
    model = sdk.load(path, threads=threads)
    run, output = model.session.run, model.signature.outputs[0].name
    return lambda inputs: run({case.input: inputs})[output], model


def open_onnxruntime(file: Path, threads: int) -> Call:
    """A file as its user would load it; idle threads must not disturb what is timed beside it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: session.run(None, {name: inputs})[0]


def open_openvino(file: Path, threads: int) -> Call:
    """A file with the settings that our runtime uses."""
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(file, "CPU", config | {"INFERENCE_NUM_THREADS": threads})
    request = compiled.create_infer_request()

    def call(inputs: Array) -> Array:
        request.infer({0: inputs}, share_inputs=True, share_outputs=True)
        result: Array = request.get_output_tensor(0).data.copy()
        return result

    return call


OPEN = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}


def sample(
    calls: dict[str, Callable[[], object]], clock: str, seconds: float
) -> dict[str, list[float]]:
    """Microseconds of each call, in rounds of random order; two calls before it do not count."""
    now, end = CLOCKS[clock], time.monotonic() + seconds
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    while time.monotonic() < end or len(times["ours"]) < 5:
        for name in rng.permutation(list(calls)):
            calls[name](), calls[name]()
            start = now()
            calls[name]()
            times[name].append((now() - start) / 1e3)
    return times


def measure_engine(
    case: Case,
    engine: str,
    ours: Path,
    files: dict[str, Path],
    threads: int,
    clock: str,
    seconds: float,
) -> list[Row]:
    """Time and score everything that runs on one engine."""
    fp32 = OPEN[engine](case.onnx, threads)
    truth = _classes(fp32, case.check) if case.labels is None else case.labels
    call, model = open_ours(case, ours, threads)
    builds = [
        Build(
            "ours",
            call,
            _size(ours / model.artifact.manifest.functions["main"].file),
            _right(call, case, truth),
        )
    ]
    for name, file in files.items():
        opened = OPEN[engine](file, threads)
        builds.append(Build(name, opened, _size(file), _right(opened, case, truth)))
    one = case.check[:1]
    calls = {build.name: (lambda build=build: build.call(one)) for build in builds}
    times = sample(calls | {"fp32": lambda: fp32(one)}, clock, seconds)
    kept = model.target.precision
    return [_row(case, engine, threads, kept, builds[0], build, times) for build in builds[1:]]


def _row(
    case: Case,
    engine: str,
    threads: int,
    kept: str,
    ours: Build,
    peer: Build,
    times: dict[str, list[float]],
) -> Row:
    ratio, low, high = median_of(np.array(times["ours"]) / np.array(times[peer.name]))
    return Row(
        model=case.name,
        engine=engine,
        threads=threads,
        peer=peer.name,
        metric=case.metric,
        kept=kept,
        accuracy=float(ours.right.mean()),
        peer_accuracy=float(peer.right.mean()),
        only_ours_right=int(np.sum(ours.right > peer.right)),
        only_peer_right=int(np.sum(peer.right > ours.right)),
        bytes=ours.bytes,
        peer_bytes=peer.bytes,
        latency=Latency.of(times["ours"]),
        peer_latency=Latency.of(times[peer.name]),
        ratio=ratio,
        interval=(low, high),
    )


def quantize_all(case: Case, envs: Path, folder: Path) -> tuple[dict[Peer, Path], dict[str, str]]:
    """Each peer's file, and why a peer has none."""
    np.save(folder / "calibration.npy", case.calibration)
    files: dict[Peer, Path] = {}
    failed: dict[str, str] = {}
    for peer in PEERS:
        try:
            files[peer] = peer.quantize(
                envs, case.onnx, folder / "calibration.npy", case.input, folder
            )
        except PeerError as error:
            failed[peer.name] = str(error)
    return files, failed


def run_case(case: Case, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything about one model."""
    files, failed = quantize_all(case, arguments.envs, folder)
    rows: list[Row] = []
    wanted = [folder / f"ours-{engine}-{arguments.precision}.edge" for engine in ENGINES]
    missing = arguments.precision == "int8" and not all(path.is_dir() for path in wanted)
    shared = shared_program(case) if missing else None
    for engine in ENGINES:
        ours = compile_ours(case, engine, arguments.precision, folder, shared)
        fit = {peer.name: file for peer, file in files.items() if engine in peer.engines}
        for threads in arguments.threads:
            rows += measure_engine(
                case, engine, ours, fit, threads, arguments.clock, arguments.seconds
            )
    return {"model": case.name, "clock": arguments.clock, "rows": rows, "failed": failed}


def _batches(inputs: Array) -> list[Array]:
    return [inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)]


def _classes(call: Call, inputs: Array) -> Array:
    return np.concatenate([call(batch).argmax(1) for batch in _batches(inputs)])


def _right(call: Call, case: Case, truth: Array) -> Array:
    return np.asarray(_classes(call, case.check) == truth)


def _size(file: Path) -> int:
    """Of the file and, for OpenVINO's own format, of the weights beside it."""
    weights = file.with_suffix(".bin")
    return file.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)


def line(row: Row) -> str:
    """A row for people."""
    ours, peer = row.latency, row.peer_latency
    return (
        f"{row.engine:11} {row.threads} thread(s)  {row.peer:12} "
        f"{ours.p50:7.0f} us ({ours.spread:4.0%}) / {peer.p50:7.0f} us ({peer.spread:4.0%})  "
        f"ratio {row.ratio:5.3f} [{row.interval[0]:5.3f}, {row.interval[1]:5.3f}]  "
        f"{row.metric} {row.accuracy:6.2%} / {row.peer_accuracy:6.2%} "
        f"(+{row.only_ours_right} -{row.only_peer_right})  "
        f"{row.bytes / 1e6:5.2f} / {row.peer_bytes / 1e6:5.2f} MB  kept {row.kept}  {row.verdict}"
    )


def main() -> int:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--student", type=Path)
    parser.add_argument("--envs", type=Path, default=Path(tempfile.gettempdir()) / "peers")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--cases", nargs="+", default=["mobilenet", "student"])
    parser.add_argument("--precision", default="int8", choices=["int8", "auto"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing per engine")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    reports = []
    with tempfile.TemporaryDirectory() as name:
        makers = cases(arguments.data, arguments.student)
        for case in arguments.cases:
            folder = (arguments.keep or Path(name)).resolve() / case
            folder.mkdir(parents=True, exist_ok=True)
            reports.append(run_case(makers[case](folder), arguments, folder))
    print(json.dumps(to_json(reports), indent=1) if arguments.json else table(reports))
    return int(any(row.verdict == "misses" for report in reports for row in report["rows"]))


def table(reports: list[dict[str, Any]]) -> str:
    """The report for people: ours / peer."""
    lines = []
    for report in reports:
        lines += [
            f"{report['model']}, {report['clock']} time: ours / peer",
            *map(line, report["rows"]),
        ]
        lines += [f"{name}: {reason}" for name, reason in report["failed"].items()]
    return "\n".join(lines)


def to_json(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The report for programs."""
    return [
        report | {"rows": [asdict(row) | {"verdict": row.verdict} for row in report["rows"]]}
        for report in reports
    ]


if __name__ == "__main__":
    sys.exit(main())
