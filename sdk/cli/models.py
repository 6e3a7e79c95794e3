"""Find the model that the command line names: `package.module:callable`, a file or a folder."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sdk.errors import InputError
from sdk.extras import require

EXAMPLE_INPUTS = "example_inputs"
# What the caller's own code raises while it is imported or called.
USER_FAILURES = (
    ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, LookupError,
    RuntimeError, AssertionError, ArithmeticError, OSError,
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A model that `sdk.compile` takes, and what makes its example inputs, if anything does."""

    model: Any
    example: Callable[[], Any] | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a Hugging Face folder, for which inputs can be made."""
        return isinstance(self.model, Path) and self.model.is_dir()


def find(text: str) -> Source:
    """The model named by `text`; InputError says what is near."""
    path = Path(text)
    if path.suffix.lower() == ".onnx":
        _check_file(path)
        return Source(path)
    if path.is_dir():
        return Source(path)
    module_name, colon, attribute = text.partition(":")
    named = all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")])
    if not (colon and named) or module_name.endswith(".py"):
        raise InputError(
            f"The model {text!r} is not understood.",
            expected="package.module:callable, or the path of an .onnx file or of a model folder",
            got=repr(text),
            fix=_rewritten(path, attribute),
        )
    module = _import(module_name)
    return Source(_model(module, attribute), _example(module))


def find_metric(text: str) -> Callable[[Any], Any]:
    """The function `package.module:name`; what it raises becomes an InputError with its line."""
    module_name, colon, attribute = text.partition(":")
    if not (module_name and colon and attribute):
        raise InputError(
            f"The metric {text!r} is not understood.", expected="package.module:function"
        )
    metric = _resolve(_import(module_name), attribute)

    def call(predict: Any) -> Any:
        with _user_code(f"The metric {text} failed."):
            return metric(predict)

    call.__name__ = attribute
    return call


def _check_file(path: Path) -> None:
    if path.is_file():
        return
    names = [str(file) for file in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
    raise InputError(
        f"There is no file {path}.",
        expected="the path of an .onnx file",
        fix=_near(str(path), names) or "check the path",
    )


def _rewritten(path: Path, attribute: str) -> str:
    """What to write instead of `folder/model.py:net` or of a name without a colon."""
    file = Path(str(path).partition(":")[0])
    stem = file.with_suffix("") if file.suffix == ".py" else file
    module = ".".join(part for part in stem.parts if part not in ("/", "."))
    return f"write {module or 'package.module'}:{attribute or 'callable'}"


def _import(name: str) -> ModuleType:
    """Import a module of the current directory or an installed one."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with _user_code(f"The module {name!r} failed while it was imported."):
            return importlib.import_module(name)
    except InputError as error:
        cause = error.__cause__
        if not isinstance(cause, ModuleNotFoundError) or not _is_part(cause.name, name):
            raise
        parent, _, last = str(cause.name).rpartition(".")
        known = [f"{parent}.{found}".lstrip(".") for found in _modules_in(parent)]
        raise InputError(
            f"There is no module {cause.name!r}.",
            expected="a module of the current directory, or an installed one",
            got=repr(name),
            fix=_near(f"{parent}.{last}".lstrip("."), known) or f"look at the files in {here}",
        ) from cause


def _is_part(missing: str | None, name: str) -> bool:
    """Whether the missing module is the wanted one or a package that holds it, not one it needs."""
    return missing is not None and f"{name}.".startswith(f"{missing}.")


def _modules_in(package: str) -> list[str]:
    folders = getattr(sys.modules[package], "__path__", ()) if package else [str(Path.cwd())]
    return [module.name for module in pkgutil.iter_modules(folders)]


def _model(module: ModuleType, attribute: str) -> Any:
    """The module object or exported program at `attribute`, or what the callable there returns."""
    torch = require("torch", purpose="Compiling a PyTorch model")
    kinds = (torch.nn.Module, torch.export.ExportedProgram)
    name = f"{module.__name__}:{attribute}"
    value = _resolve(module, attribute)
    if not isinstance(value, kinds) and callable(value):
        with _user_code(f"{name}() failed."):
            value = value()
    if isinstance(value, kinds):
        return value
    raise InputError(
        f"{name} is not a model.",
        expected="an nn.Module, an ExportedProgram, or a callable that returns one",
        got=type(value).__name__,
    )


def _resolve(module: ModuleType, attribute: str) -> Any:
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            known = [name for name in dir(value) if not name.startswith("_")]
            raise InputError(
                f"{module.__name__} has no {attribute!r}.",
                expected="a callable that returns an nn.Module, or an nn.Module",
                fix=_near(part, known) or f"choose among {', '.join(_callables(value)[:20])}",
            )
        value = getattr(value, part)
    return value


def _callables(value: Any) -> list[str]:
    names = (name for name in dir(value) if not name.startswith("_"))
    return [name for name in names if callable(getattr(value, name))]


def _example(module: ModuleType) -> Callable[[], Any] | None:
    function = getattr(module, EXAMPLE_INPUTS, None)
    if not callable(function):
        return None

    def example() -> Any:
        with _user_code(f"{module.__name__}:{EXAMPLE_INPUTS}() failed."):
            return function()

    return example


@contextmanager
def _user_code(what: str) -> Iterator[None]:
    """The one place where what the caller's code raises becomes an InputError with its line."""
    try:
        yield
    except USER_FAILURES as error:
        raise InputError(
            what,
            got=f"{type(error).__name__}: {error}",
            fix=f"look at {_where(error)}, or run again with --debug",
        ) from error


def _where(error: Exception) -> str:
    """File and line of the caller's own code at which `error` came up."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)[1:]
    libraries = ("<frozen", "site-packages", str(Path(importlib.__file__).parent))
    own = [f for f in frames if not any(library in f.filename for library in libraries)]
    last = (own or frames)[-1]
    return f"{last.filename}:{last.lineno}"


def _near(name: str, known: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else None
