"""A builder that remembers: a build, its figures and the ranking of layers come from the cache.

Kept are the files and what does not depend on the moment: parity, the error of the outputs and,
where the caller names its metric and data by `metric_key`, the metric. Latencies never are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdk.artifact import GOLDEN
from sdk.building import Builder
from sdk.environment import COMPILING, describe, versions
from sdk.errors import EdgeError, ParityError, QuantizationError, UnsupportedOperatorError
from sdk.evidence import Built, Facts
from sdk.kernels.library import library_digest
from sdk.kernels.needs import NATIVE
from sdk.manifest import Fidelity, Greedy, KernelUse
from sdk.parity import TOLERANCE, OutputParity, ParityReport
from sdk.runtimes import open_session, support_of
from sdk.search.cache import Cache, key_of
from sdk.signature import digest_of
from sdk.target import Target

if TYPE_CHECKING:
    from sdk.compilers.program import Program

LIBRARIES = (*COMPILING, "nncf", "coremltools", "tensorrt", "tensorrt-rtx", "onnxruntime-qnn")
# Refusals that come again with the same program and the same versions.
LASTING = (QuantizationError, UnsupportedOperatorError, ParityError)
FILES = "files"


@dataclass(frozen=True, slots=True)
class Record:
    """A build; its files lie beside it."""

    file: str
    depth: int
    sources: dict[str, tuple[str, ...]]
    requires: dict[str, str]
    checked_on: str
    sha256: str
    float_layers: tuple[str, ...]
    settings: dict[str, str]
    parity: tuple[OutputParity, ...]
    outputs: tuple[OutputParity, ...] | None
    greedy: Greedy | None = None
    kernels: tuple[KernelUse, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """The error that a build ended with."""

    kind: str
    what: str
    expected: str | None
    got: str | None
    fix: str | None

    def error(self) -> EdgeError:
        """The error again."""
        kind = next((k for k in LASTING if k.__name__ == self.kind), QuantizationError)
        return kind(self.what, expected=self.expected, got=self.got, fix=self.fix)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a build: one of the two."""

    record: Record | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Costs:
    """Layers by cost, worst first."""

    layers: tuple[str, ...]
    costs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value."""

    value: float


class CachedBuilder(Builder):
    """A `Builder` with a cache; `built` and `reused` count what was made and what was there."""

    built = 0
    reused = 0
    cache: Cache | None = None

    def made(self, precision: str, *, keep_float: Sequence[str] = ()) -> Built:
        """As `Builder.made`, or from the cache."""
        target = self.settings.target.with_precision(precision)
        # a stand-in needs the program itself, and that is most of the work
        if self.cache is None or not support_of(target).run:
            return self._counted(precision, keep_float)
        key = self._key("build", target, sorted(keep_float))
        folder = self.folder / f"{key[:16]}-{precision}"
        found = self.cache.get(key, Outcome, folder)
        if found is None:
            return self._make(self.cache, key, precision, keep_float)
        self.reused += 1
        self.settings.progress(f"take {target} from the cache", 0, 1)
        if found.refusal is not None:
            raise found.refusal.error()
        assert found.record is not None
        return self._reopen(found.record, target, folder, key)

    def metric_of(self, built: Built) -> float:
        """As `Builder.metric_of`, or from the cache where the caller has named metric and data."""
        name = self.settings.metric_key
        if self.cache is None or name is None or built.key is None:
            return super().metric_of(built)
        key = key_of({"kind": "metric", "build": built.key, "metric": name})
        found = self.cache.get(key, Score)
        if found is None:
            found = Score(super().metric_of(built))
            self.cache.put(key, found)
        return found.value

    def layer_costs(self, precision: str) -> list[tuple[str, float]]:
        """As `Builder.layer_costs`, or from the cache."""
        if self.cache is None:
            return super().layer_costs(precision)
        key = self._key("costs", self.settings.target.with_precision(precision), [])
        found = self.cache.get(key, Costs)
        if found is None:
            pairs = super().layer_costs(precision)
            found = Costs(tuple(layer for layer, _ in pairs), tuple(cost for _, cost in pairs))
            self.cache.put(key, found)
        return list(zip(found.layers, found.costs, strict=True))

    def _counted(self, precision: str, keep_float: Sequence[str]) -> Built:
        """A refusal is an answer, too; an interruption is none."""
        try:
            built = super().made(precision, keep_float=keep_float)
        except LASTING:
            self.built += 1
            raise
        self.built += 1
        return built

    def _make(self, cache: Cache, key: str, precision: str, keep_float: Sequence[str]) -> Built:
        try:
            built = self._counted(precision, keep_float)
        except LASTING as error:
            cache.put(key, Outcome(refusal=_refusal(error)))
            raise
        built.key = key
        paths = (path for path in built.build.folder.rglob("*") if path.is_file())
        root = built.build.folder
        files = {f"{FILES}/{path.relative_to(root).as_posix()}": path for path in paths}
        cache.put(key, Outcome(record=_record(built)), {**files, GOLDEN: built.facts.golden})
        return built

    def _reopen(self, record: Record, target: Target, folder: Path, key: str) -> Built:
        from sdk.compilers.program import Build, SourceLine  # imports torch

        sources = {name: SourceLine(*row) for name, row in record.sources.items()}
        file, kernels = folder / FILES / record.file, record.kernels
        build = Build(file, sources, record.requires, record.depth, kernels)
        threads, signature = self.settings.threads, self.program.signature
        session = open_session(file, signature, target, threads=threads, kernels=kernels)
        golden = (folder / GOLDEN).read_bytes()
        facts = Facts(record.sha256, record.float_layers, record.settings, golden, record.greedy)
        parity = ParityReport(TOLERANCE[target.precision], record.parity)
        built = Built(target, build, session, parity, record.checked_on, facts, key=key)
        built.fidelity = None if record.outputs is None else Fidelity(record.outputs)
        return built

    def _key(self, kind: str, target: Target, keep_float: list[str]) -> str:
        """Of all that an entry depends on."""
        return key_of({**self._common, "kind": kind, "target": target, "keep_float": keep_float})

    @cached_property
    def _common(self) -> dict[str, Any]:
        settings, program = self.settings, self.program
        return {
            "program": program.digest(),
            "signature": program.signature,
            "given": None if self.given is None else self.given.digest(),
            "group_size": settings.group_size,
            "method": settings.method,
            "waived": "parity" in settings.waive,
            "kernels": [program.kernel_policy, _kernels_of(program)],
            "calibration": digest_of(self.calibration),
            "checks": digest_of(self.feeds),
            "versions": versions(LIBRARIES),
            "code": _code(),
            "host": [describe().get(fact) for fact in ("processor", "instructions", "system")],
        }


def _kernels_of(program: Program) -> str:
    """The library's digest, where the program may get kernels from it."""
    from sdk.compilers.kernels import kernel_nodes  # imports torch

    may = program.kernel_policy == NATIVE or any(kernel_nodes(program.exported))
    return library_digest() if may else ""


@cache
def _code() -> str:
    """SHA-256 over the SDK's own compilers and runtimes: one version may be of several states."""
    digest = hashlib.sha256()
    for room in ("compilers", "runtimes"):
        root = Path(str(files(f"sdk.{room}")))
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _record(built: Built) -> Record:
    build, facts, fidelity = built.build, built.facts, built.fidelity
    return Record(
        file=build.file.relative_to(build.folder).as_posix(),
        depth=build.depth,
        sources={n: (s.module, s.operator, s.line) for n, s in build.sources.items()},
        requires=dict(build.requires),
        checked_on=built.checked_on,
        sha256=facts.sha256,
        float_layers=facts.float_layers,
        settings=facts.settings,
        parity=built.parity.outputs,
        outputs=None if fidelity is None else fidelity.outputs,
        greedy=facts.greedy,
        kernels=build.kernels,
    )


def _refusal(error: EdgeError) -> Refusal:
    expected, got = (None if v is None else str(v) for v in (error.expected, error.got))
    return Refusal(type(error).__name__, error.what, expected, got, error.fix)
