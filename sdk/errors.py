"""The errors that the SDK raises. Each message says what, expected, got and how to fix it.

EdgeError
├── CaptureError                  torch.export could not capture the model
├── UnsupportedOperatorError      an engine lacks an operator of the program
├── QuantizationError             calibration data or quantization settings are unusable
├── ParityError                   the compiled model does not compute what the reference computes
├── BudgetError                   a search found nothing within its latency and size budgets
├── ArtifactError                 an artifact cannot be read or written
│   ├── ManifestVersionError      the manifest is of another format version
│   ├── CorruptArtifactError      a file is missing, changed, unlisted or unsafe
│   ├── SignatureMismatchError    the engine's inputs or outputs are not those of the manifest
│   └── KernelMissingError        a plugin kernel that the artifact needs is not installed
├── EngineUnavailableError        an engine, device or optional package is not there
├── InputError                    an argument, tensor or image given by the caller is wrong
├── EngineError                   an engine failed while building or running
└── GenerationError               a generation request cannot be carried out
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdk.parity import ParityReport


class EdgeError(Exception):
    """Root of all errors that the SDK raises on purpose.

    `what` is one sentence; `expected`, `got` and `fix` are fragments, shown on their own lines.
    """

    def __init__(
        self,
        what: str,
        *,
        expected: object | None = None,
        got: object | None = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.expected, self.got, self.fix = what, expected, got, fix
        details = (("expected", expected), ("got", got), ("fix", fix))
        lines = [f"  {label}: {text}" for label, text in details if text is not None]
        super().__init__("\n".join([what, *lines]))


class CaptureError(EdgeError):
    """torch.export could not capture the model."""


class UnsupportedOperatorError(EdgeError):
    """An engine lacks an operator of the program."""


class QuantizationError(EdgeError):
    """Calibration data or quantization settings are unusable."""


class ParityError(EdgeError):
    """The compiled model is out of bounds against the reference; `report` has the figures."""

    def __init__(
        self,
        what: str,
        *,
        expected: object | None = None,
        got: object | None = None,
        fix: str | None = None,
        report: ParityReport | None = None,
    ) -> None:
        super().__init__(what, expected=expected, got=got, fix=fix)
        self.report = report


class BudgetError(EdgeError):
    """No candidate of a search is within its budgets; the message names the nearest."""


class ArtifactError(EdgeError):
    """An artifact cannot be read or written."""


class ManifestVersionError(ArtifactError):
    """The manifest is of another format version."""


class CorruptArtifactError(ArtifactError):
    """A file of the artifact is missing, changed, unlisted or unsafe."""


class SignatureMismatchError(ArtifactError):
    """The engine's inputs or outputs are not those of the manifest."""


class KernelMissingError(ArtifactError):
    """A plugin kernel that the artifact needs is not installed, or is older."""


class EngineUnavailableError(EdgeError):
    """An engine, a device or an optional package is not there."""


class InputError(EdgeError):
    """An argument, tensor or image given by the caller is wrong."""


class EngineError(EdgeError):
    """An engine failed while building or running; the engine's own exception is the cause."""


class GenerationError(EdgeError):
    """A generation request cannot be carried out."""
