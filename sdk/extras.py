"""The one way to import an optional package, and the table of which extra brings which package."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
from collections.abc import Iterator
from types import ModuleType

from sdk.errors import EngineUnavailableError

# module -> extra of the distribution that installs it
EXTRA = {
    "accelerate": "recipes",
    "coremltools": "coreml",
    "cuda": "tensorrt-rtx",
    "huggingface_hub": "transformers",
    "jinja2": "report",
    "llguidance": "generate",
    "matplotlib": "report",
    "nncf": "nncf",
    "onnx": "compile",
    "onnxruntime": "onnxruntime",
    "onnxruntime_qnn": "qnn",
    "onnxscript": "compile",
    "openvino": "openvino",
    "PIL": "images",
    "pyarrow": "recipes",
    "rich": "cli",
    "safetensors": "torch",
    "scipy": "recipes",  # scikit-learn brings it
    "sklearn": "recipes",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "tokenizers": "generate",
    "torch": "torch",
    "torchao": "compile",
    "transformers": "transformers",
    "typer": "cli",
}

# package -> loggers that warn, when it is imported, of what the caller cannot act on
# what is held at errors -> its loggers
NOISY = {
    "accelerate": ("accelerate",),  # weights that are one tensor and are stored once
    "torchao": ("torchao", "torch.utils._pytree"),  # CUDA libraries; its own enums
    "coremltools": ("coremltools",),  # versions of torch and scikit-learn; casts of its own
    "nncf": ("nncf",),  # progress, and advice on the number of samples
    "torch.onnx": ("torch.onnx",),
    "torch.export": ("torch.export", "torch.fx.experimental.symbolic_shapes"),
    # slow paths, classes that will go; it imports torchao
    "transformers": ("transformers", "torchao", "torch.utils._pytree"),
}


def installed(module: str) -> bool:
    """Whether `module` can be found, without importing it."""
    return importlib.util.find_spec(module) is not None


def require(module: str, *, purpose: str, extra: str | None = None) -> ModuleType:
    """Import `module`, or raise EngineUnavailableError with the command that installs it.

    `extra` is the one to name where the purpose needs more than the module's own.
    """
    root = module.partition(".")[0]
    try:
        with quiet(root):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != root:
            raise  # the package is there and one of its own needs is not: say which
        raise EngineUnavailableError(
            f"{purpose} needs the package {root!r}, which is not installed.",
            fix=f"pip install 'edge-sdk[{extra or EXTRA[root]}]'",
        ) from error


@contextlib.contextmanager
def quiet(package: str) -> Iterator[None]:
    """Import or use `package` in here: its `NOISY` loggers are held at errors."""
    loggers = map(logging.getLogger, NOISY.get(package, ()))
    levels = {logger: logger.level for logger in loggers}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
