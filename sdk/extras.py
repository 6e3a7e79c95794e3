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
    "jinja2": "report",
    "matplotlib": "report",
    "onnx": "compile",
    "onnxruntime": "onnxruntime",
    "onnxscript": "compile",
    "openvino": "openvino",
    "PIL": "images",
    "pyarrow": "recipes",
    "rich": "cli",
    "safetensors": "torch",
    "sklearn": "recipes",
    "torch": "torch",
    "torchao": "compile",
    "tqdm": "recipes",
    "typer": "cli",
}


def installed(module: str) -> bool:
    """Whether `module` can be found, without importing it."""
    return importlib.util.find_spec(module) is not None


def require(module: str, *, purpose: str) -> ModuleType:
    """Import `module`, or raise EngineUnavailableError with the command that installs it."""
    root = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != root:
            raise  # the package is there and one of its own needs is not: say which
        raise EngineUnavailableError(
            f"{purpose} needs the package {root!r}, which is not installed.",
            fix=f"pip install 'edge-sdk[{EXTRA[root]}]'",
        ) from error


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Keep warnings of these loggers back: for imports that log what the caller cannot act on."""
    levels = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
