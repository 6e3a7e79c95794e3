"""Take a trained PyTorch model to a device and prove that it arrived.

The names below are the whole public API. They are loaded when first used, so that `import sdk`
costs NumPy's time at most and never torch's or an engine's.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `x as x` is how a type checker knows that x is public
    from sdk.api import (
        compile as compile,
        engines as engines,
        load as load,
        profile as profile,
        recipe as recipe,
        tune as tune,
        verify as verify,
    )
    from sdk.artifact import (
        Artifact as Artifact,
    )
    from sdk.errors import (
        ArtifactError as ArtifactError,
        BudgetError as BudgetError,
        CaptureError as CaptureError,
        CorruptArtifactError as CorruptArtifactError,
        EdgeError as EdgeError,
        EngineError as EngineError,
        EngineUnavailableError as EngineUnavailableError,
        GenerationError as GenerationError,
        InputError as InputError,
        KernelMissingError as KernelMissingError,
        ManifestVersionError as ManifestVersionError,
        ParityError as ParityError,
        QuantizationError as QuantizationError,
        SignatureMismatchError as SignatureMismatchError,
        UnsupportedOperatorError as UnsupportedOperatorError,
    )
    from sdk.generating import (
        GenerationResult as GenerationResult,
    )
    from sdk.model import (
        Model as Model,
    )
    from sdk.placement import (
        FallbackWarning as FallbackWarning,
    )
    from sdk.processor import (
        Classification as Classification,
        ImageProcessor as ImageProcessor,
        Processor as Processor,
    )
    from sdk.runtimes.generation.datastore import (
        Datastore as Datastore,
    )
    from sdk.runtimes.generation.drafters.fused import (
        FusedDrafter as FusedDrafter,
    )
    from sdk.runtimes.generation.drafters.lexical_unit import (
        LexicalUnitDrafter as LexicalUnitDrafter,
    )
    from sdk.runtimes.generation.drafters.prompt_lookup import (
        PromptLookupDrafter as PromptLookupDrafter,
    )
    from sdk.runtimes.generation.drafters.retrieval import (
        RetrievalDrafter as RetrievalDrafter,
    )
    from sdk.runtimes.generation.drafters.source_lookup import (
        SourceLookupDrafter as SourceLookupDrafter,
    )
    from sdk.runtimes.generation.drafters.trigram import (
        TrigramDrafter as TrigramDrafter,
    )
    from sdk.runtimes.generation.feature_drafter import (
        FeatureDrafter as FeatureDrafter,
    )
    from sdk.runtimes.generation.grammars import (
        JsonSchema as JsonSchema,
        Lark as Lark,
        Regex as Regex,
    )
    from sdk.runtimes.generation.model_drafter import (
        ModelDrafter as ModelDrafter,
    )
    from sdk.runtimes.generation.momentum import (
        Momentum as Momentum,
    )
    from sdk.runtimes.generation.sorted_drafter import (
        SortedDrafter as SortedDrafter,
    )
    from sdk.runtimes.generation.trigram_table import (
        TrigramTable as TrigramTable,
    )
    from sdk.signature import (
        Dim as Dim,
        Signature as Signature,
        TensorSpec as TensorSpec,
    )
    from sdk.target import (
        Availability as Availability,
        DeviceSupport as DeviceSupport,
        Target as Target,
    )

_HOME = {
    "sdk.api": ("compile", "engines", "load", "profile", "recipe", "tune", "verify"),
    "sdk.artifact": ("Artifact",),
    "sdk.errors": (
        "ArtifactError",
        "BudgetError",
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
    "sdk.generating": ("GenerationResult",),
    "sdk.model": ("Model",),
    "sdk.placement": ("FallbackWarning",),
    "sdk.processor": ("Classification", "ImageProcessor", "Processor"),
    "sdk.runtimes.generation.datastore": ("Datastore",),
    "sdk.runtimes.generation.drafters.fused": ("FusedDrafter",),
    "sdk.runtimes.generation.drafters.lexical_unit": ("LexicalUnitDrafter",),
    "sdk.runtimes.generation.drafters.prompt_lookup": ("PromptLookupDrafter",),
    "sdk.runtimes.generation.drafters.retrieval": ("RetrievalDrafter",),
    "sdk.runtimes.generation.drafters.source_lookup": ("SourceLookupDrafter",),
    "sdk.runtimes.generation.drafters.trigram": ("TrigramDrafter",),
    "sdk.runtimes.generation.feature_drafter": ("FeatureDrafter",),
    "sdk.runtimes.generation.grammars": ("JsonSchema", "Lark", "Regex"),
    "sdk.runtimes.generation.model_drafter": ("ModelDrafter",),
    "sdk.runtimes.generation.momentum": ("Momentum",),
    "sdk.runtimes.generation.sorted_drafter": ("SortedDrafter",),
    "sdk.runtimes.generation.trigram_table": ("TrigramTable",),
    "sdk.signature": ("Dim", "Signature", "TensorSpec"),
    "sdk.target": ("Availability", "DeviceSupport", "Target"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'sdk' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
