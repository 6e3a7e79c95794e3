"""Load a Hugging Face folder: no network, no pickle, no code of its own, no weight missing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sdk.errors import InputError
from sdk.extras import quiet, require

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PURPOSE = "A Hugging Face model"
CONFIG = "config.json"
MAX_CONFIG_BYTES = 16 << 20
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What transformers raises on a configuration or on weights that it cannot use.
FAILURES = (
    OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError,
    ArithmeticError, AssertionError,
)  # fmt: skip


def load_folder(folder: Path, task: str | None) -> PreTrainedModel:
    """The folder's model in float32 and eval mode; InputError says why there is none."""
    config = read_config(folder)
    kind = model_class(config, task)
    _check_weights(folder)
    safetensors = require("safetensors", purpose=PURPOSE)
    torch = require("torch", purpose=PURPOSE)
    try:
        with _no_progress_bar():
            loaded: Any = kind.from_pretrained(
                str(folder),
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (*FAILURES, safetensors.SafetensorError) as error:
        raise _unusable(folder, error) from error
    model, found = loaded
    _check_loaded(folder, kind, found)
    return cast("PreTrainedModel", model.eval())


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Loading reports through the caller's progress, not beside it."""
    logging = require("transformers.utils.logging", purpose=PURPOSE)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the folder's; empty where there is no such file."""
    file = folder / name
    if not file.is_file():
        return {}
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise InputError(f"{file} is too large.", expected=f"at most {MAX_CONFIG_BYTES} bytes")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON.", got=error) from error
    if not isinstance(value, dict):
        raise InputError(f"{file} is not a JSON object.", got=type(value).__name__)
    return value


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration, if transformers itself has the model's code."""
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder} is not a Hugging Face model folder.",
            expected=f"a folder with {CONFIG} and .safetensors weights",
            got=", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "an empty folder",
            fix="write one with model.save_pretrained(folder)",
        )
    data = read_json(folder, CONFIG)
    known = require("transformers", purpose=PURPOSE).CONFIG_MAPPING
    name = data.get("model_type")
    if name not in known:
        code = "auto_map" in data
        raise InputError(
            f"The model_type {name!r} is not one of transformers' own"
            + (": its code is in the folder, and code of a folder is never run." if code else "."),
            expected="a model_type that the installed transformers has",
            got=f"model_type {name!r} in {folder / CONFIG}",
            fix="import the model's class yourself and pass the nn.Module"
            if code
            else "upgrade transformers, or correct model_type",
        )
    if data.get("quantization_config"):
        raise InputError(
            f"{folder} holds weights that are quantized already.",
            got=f"quantization_config {data['quantization_config']}",
            fix="take the float folder of the model; the target's precision quantizes it",
        )
    strict = require("huggingface_hub.errors", purpose=PURPOSE).StrictDataclassError
    try:
        return known[name].from_dict(data)  # type: ignore[no-any-return]
    except (*FAILURES, strict) as error:
        raise InputError(f"{folder / CONFIG} makes no configuration.", got=error) from error


def model_class(config: PretrainedConfig, task: str | None) -> type[PreTrainedModel]:
    """The class for `task`; without one the class that the configuration names, or the bare one."""
    transformers = require("transformers", purpose=PURPOSE)
    if task is not None:
        return _class_for(config, task)
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    kinds = transformers.MODEL_MAPPING
    if type(config) not in kinds:
        raise InputError(
            f"There is no model for the configuration {type(config).__name__}.",
            got=f"architectures={config.architectures}",
            fix="name the class in config.architectures, or pass task=",
        )
    return _one(kinds[type(config)])


def _class_for(config: PretrainedConfig, task: str) -> type[PreTrainedModel]:
    """Of transformers' pipelines, the class that the task has for this configuration."""
    with quiet("torchao"):  # which the pipelines import
        tasks = require("transformers.pipelines", purpose=PURPOSE).SUPPORTED_TASKS
    if task not in tasks:
        raise InputError(
            f"The task {task!r} is not known.", expected=f"one of {', '.join(sorted(tasks))}"
        )
    for auto in tasks[task]["pt"]:
        if type(config) in auto._model_mapping:
            return _one(auto._model_mapping[type(config)])
    raise InputError(
        f"{config.model_type} has no model for the task {task!r}.",
        expected=", ".join(
            name
            for name, entry in sorted(tasks.items())
            if any(type(config) in auto._model_mapping for auto in entry["pt"])
        ),
        got=task,
    )


def _one(found: Any) -> type[PreTrainedModel]:
    return found[0] if isinstance(found, (list, tuple)) else found  # type: ignore[no-any-return]


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(file.name for kind in PICKLES for file in folder.glob(kind))
    if not pickled:
        raise InputError(
            f"{folder} holds no weights.",
            expected="model.safetensors, or its shards with model.safetensors.index.json",
            fix="write them with model.save_pretrained(folder)",
        )
    raise InputError(
        f"The weights in {folder} are pickled, and reading a pickle can run any code.",
        expected="model.safetensors",
        got=", ".join(pickled),
        fix="where you trust the file: load it with transformers' from_pretrained(folder, "
        "use_safetensors=False) and write it again with save_pretrained(new_folder)",
    )


def _check_loaded(folder: Path, kind: type, found: dict[str, Any]) -> None:
    """Weights that the folder lacks would be random: an artifact of them is worth nothing."""
    missing = sorted(found["missing_keys"])
    mismatched = sorted(map(str, found["mismatched_keys"]))
    if not missing and not mismatched:
        return
    lacks = missing or mismatched
    raise InputError(
        f"{folder} does not hold the weights of {kind.__name__}.",
        expected="every weight of the model",
        got=f"{len(lacks)} {'missing' if missing else 'of another shape'}: {', '.join(lacks[:4])}",
        fix="pass the task that the folder was trained for, or complete its files",
    )


def _unusable(folder: Path, error: BaseException) -> InputError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(
        f"The weights in {folder} cannot be loaded.",
        expected="complete .safetensors files that belong to config.json",
        got=f"{type(error).__name__}: {lines[0]}",
        fix="copy the folder again, or write it with model.save_pretrained(folder)",
    )
