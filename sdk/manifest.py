"""What an artifact says about itself. The JSON Schema of it is `sdk/manifest.schema.json`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace

from sdk.errors import CorruptArtifactError, InputError, ManifestVersionError
from sdk.parity import OutputParity
from sdk.signature import Signature
from sdk.structure import FIX, from_json, parse, to_json
from sdk.target import Target
from sdk.timing import Latency

FORMAT_VERSION = 1
FUNCTIONS = ("main", "step")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file of the artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class KernelUse:
    """A plugin kernel and how this artifact uses it: native, portable, composite or decomposed."""

    name: str
    version: int
    binding: str


@dataclass(frozen=True, slots=True)
class Function:
    """One callable of the artifact and the engine file that holds it."""

    signature: Signature
    file: str


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What the precision cost against fp32: the caller's metric, or the error of the outputs."""

    outputs: tuple[OutputParity, ...] = ()
    metric: str | None = None
    reference: float | None = None
    measured: float | None = None
    max_drop: float | None = None


@dataclass(frozen=True, slots=True)
class Greedy:
    """How many tokens a language model generates before it leaves those of transformers."""

    equal: int
    total: int
    margin: float | None = None
    """Where it leaves them, by how much transformers' token beat the next one: 0 is a tie."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A build that was made, what was measured of it, and whether and why it was kept."""

    target: str
    kept: bool
    reason: str
    bytes: int
    parity: tuple[OutputParity, ...]
    fidelity: Fidelity | None = None
    latency: Latency | None = None
    speedup: float | None = None
    """Median latency of the fp32 build over this one's, of one interleaved run."""
    float_layers: tuple[str, ...] = ()
    """Layers that quantization had to leave in float to stay within the metric's budget."""
    checked_on: str = "engine"
    """What the gates ran on: the engine, a simulator or evaluator of it, or a proxy."""
    settings: dict[str, str] = field(default_factory=dict)
    """How the precision was made, where there is a choice: group size, method."""
    greedy: Greedy | None = None
    """Of a language model."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One operator of the engine's graph, where it runs and why: a row of `placement.json`."""

    operator: str
    kind: str
    device: str
    kernel: str
    reason: str
    share: float | None = None
    """Of the time of all operators, 0 to 1; None where it was not timed on the engine."""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """Signature, target, evidence, provenance and the hash of every file."""

    format_version: int
    name: str
    target: str
    requested: str
    functions: dict[str, Function]
    candidates: tuple[Candidate, ...]
    check_batches: int
    threads: int
    tools: dict[str, str]
    provenance: dict[str, str]
    files: dict[str, FileEntry] = field(default_factory=dict)
    requires: dict[str, str] = field(default_factory=dict)
    """What the engine files are tied to: a library version, a compute capability, a chip."""
    eager: Latency | None = None
    """The PyTorch model on the same inputs and threads, timed in the same run as the candidates."""
    kernels: tuple[KernelUse, ...] = ()
    waivers: tuple[str, ...] = ()
    sha256: str = ""
    """Of all the other fields, so that damage to the manifest itself is seen too."""

    @property
    def function(self) -> Function:
        """The one that is checked, timed and called: `main`, or a language model's `step`."""
        return next(self.functions[name] for name in FUNCTIONS if name in self.functions)

    @property
    def kept(self) -> Candidate:
        """The candidate whose files these are."""
        return next(candidate for candidate in self.candidates if candidate.kept)

    def sealed(self) -> Manifest:
        """This manifest, as it will be read, with its SHA-256."""
        bare = from_json(Manifest, to_json(replace(self, sha256="")))
        return replace(bare, sha256=hashlib.sha256(bare.dumps()).hexdigest())

    def dumps(self) -> bytes:
        """The manifest as UTF-8 JSON."""
        return json.dumps(to_json(self), indent=1, ensure_ascii=False).encode()


def loads(text: bytes) -> Manifest:
    """Parse and check a manifest; an ArtifactError says what is wrong with it."""
    data = parse(text, "manifest")
    version = data.get("format_version") if isinstance(data, dict) else None
    if type(version) is int and version != FORMAT_VERSION:
        raise ManifestVersionError(
            "The artifact's manifest is of another format version.",
            expected=f"format_version {FORMAT_VERSION}",
            got=version,
            fix="upgrade edge-sdk" if version > FORMAT_VERSION else "compile the artifact again",
        )
    manifest = from_json(Manifest, data)
    if manifest.sha256 != manifest.sealed().sha256:
        raise CorruptArtifactError("The manifest was changed: its SHA-256 is another.", fix=FIX)
    _check_meaning(manifest)
    return manifest


def _check_meaning(manifest: Manifest) -> None:
    """What types cannot say: the targets parse, one candidate is kept, the files are listed."""
    try:
        for target in (manifest.target, manifest.requested):
            Target.parse(target)
    except InputError as error:
        raise CorruptArtifactError(f"The manifest's target: {error.what}", fix=FIX) from error
    problems = [
        f"The function {name!r} is in {function.file!r}, which the manifest does not list."
        for name, function in manifest.functions.items()
        if function.file not in manifest.files
    ]
    if not any(name in manifest.functions for name in FUNCTIONS):
        problems.append("The manifest has no function 'main' or 'step'.")
    if sum(candidate.kept for candidate in manifest.candidates) != 1:
        problems.append("The manifest does not name exactly one kept candidate.")
    if problems:
        raise CorruptArtifactError(problems[0], fix=FIX)
