"""Take a trained PyTorch model to a device and prove that it arrived.

The names below are the whole public API. They are loaded when first used, so that `import sdk` costs
NumPy's time at most and never torch's or an engine's.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdk.api import compile, engines, load, profile, recipe, verify
    from sdk.artifact import Artifact
    from sdk.errors import (
        ArtifactError,
        CaptureError,
        CorruptArtifactError,
        EdgeError,
        EngineError,
        EngineUnavailableError,
        GenerationError,
        InputError,
        KernelMissingError,
        ManifestVersionError,
        ParityError,
        QuantizationError,
        SignatureMismatchError,
        UnsupportedOperatorError,
    )
    from sdk.model import FallbackWarning, Model
    from sdk.processor import Classification, ImageProcessor, Processor
    from sdk.signature import Dim, Signature, TensorSpec
    from sdk.target import Availability, Target

_HOME = {
    "sdk.api": ("compile", "engines", "load", "profile", "recipe", "verify"),
    "sdk.artifact": ("Artifact",),
    "sdk.errors": (
        "ArtifactError",
        "CaptureError",
        "CorruptArtifactError",
        "EdgeError",
        "EngineError",
        "EngineUnavailableError",
        "GenerationError",
        "InputError",
        "KernelMissingError",
        "ManifestVersionError",
        "ParityError",
        "QuantizationError",
        "SignatureMismatchError",
        "UnsupportedOperatorError",
    ),
    "sdk.model": ("FallbackWarning", "Model"),
    "sdk.processor": ("Classification", "ImageProcessor", "Processor"),
    "sdk.signature": ("Dim", "Signature", "TensorSpec"),
    "sdk.target": ("Availability", "Target"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [  # the table above is the list
    *sorted(_MODULE_OF)
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'sdk' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
