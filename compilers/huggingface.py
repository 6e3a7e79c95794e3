"""Hugging Face models: a folder, a configuration or a model of `transformers` to a module.

Everything is local. A folder must hold `config.json` and `.safetensors` weights; pickled weights
and code that a folder brings along are refused. The inputs are made for the model's task unless the
caller gives some, and the outputs are one flat mapping of tensors: generation caches are left out.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from sdk.compilers.capture import Inputs, Named, class_name
from sdk.compilers.dims import Dynamic
from sdk.compilers.huggingface_files import FAILURES, PURPOSE, load_folder, model_class
from sdk.compilers.huggingface_inputs import propose
from sdk.compilers.huggingface_processor import processor_of
from sdk.compilers.kernel_attention import ENGINE
from sdk.errors import InputError
from sdk.extras import quiet, require
from sdk.language import Language
from sdk.processor import Processor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from sdk.compilers.huggingface_generation import Generative
    from sdk.compilers.huggingface_seq2seq import Translating

Shape = tuple[int | None, int | None]
GENERATION, SEQ2SEQ = "text-generation", "text2text-generation"
# Outputs that only a next step of generation reads.
CACHES = ("past_key_values", "cache_params", "mems", "past_buckets_states", "states")
# Inputs that are no tensors of the model's own, or that only training and generation use.
NO_INPUTS = ("use_cache", "return_dict", "output_attentions", "output_hidden_states", "labels")


@dataclass(frozen=True)
class Resolved:
    """What there is to compile, and what the model's folder says about its inputs."""

    model: Any
    inputs: Inputs | None
    dynamic: Dynamic | None
    processor: Processor | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    function: str = "main"
    checks: Sequence[Mapping[str, Any]] = ()
    """Further inputs to check on, where the caller has none."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """More files for the artifact."""
    language: Language | None = None
    calibration: Sequence[Mapping[str, Any]] = ()
    """Inputs to calibrate on, where the caller has none."""
    more: Mapping[str, Resolved] = field(default_factory=dict)
    """Further functions of the artifact, by name."""


def resolve(
    model: Any,
    inputs: Inputs | None,
    dynamic: Dynamic | None,
    *,
    task: str | None = None,
    features: bool = False,
    layers: tuple[int, int] | None = None,
    attention: str = ENGINE,
    shape: Shape | None = None,
) -> Resolved:
    """`model` as a module with inputs, if it is one of Hugging Face's; else all as it was.

    task: one of transformers' pipelines, such as `text-classification`; by default the class that
        the configuration names in `architectures`, else the bare encoder or decoder. For
        `text-generation` it is made a step over a cache, for `text2text-generation` a step and
        what reads its source.
    features, layers, attention: of such a step; see `sdk.compile`.
    shape: tokens at once and of context, where a step must have fixed ones; None for defaults.

    Raises InputError for folders that cannot be loaded safely and as a whole.
    """
    _check_options(model, task, features or layers is not None or attention != ENGINE)
    if not is_huggingface(model):
        if task is not None:
            raise InputError("task is only for Hugging Face folders and configurations.", got=task)
        return Resolved(model, inputs, dynamic)
    require("transformers", purpose=PURPOSE)
    folder = Path(model) if isinstance(model, (str, Path)) else None
    with quiet("transformers"):
        loaded, notes = _load(model, task)
    if task == GENERATION:
        _check_none(inputs, dynamic)
        options = {"features": features, "layers": layers, "attention": attention}
        return _generative(loaded, folder, notes, shape, **options)
    if task == SEQ2SEQ:
        _check_none(inputs, dynamic)
        return _translating(loaded, folder, notes)
    network = Flat(loaded)
    if inputs is None:
        inputs, proposed = propose(loaded, folder)
        dynamic = proposed if dynamic is None else dynamic
        notes["inputs"] = "random, made for the model's task"
    if isinstance(inputs, Mapping):
        network.take(inputs)
    processor, reason = processor_of(folder, loaded, inputs)
    if reason:
        notes["processor"] = f"none: {reason}"
    return Resolved(network, inputs, dynamic, processor, notes)


def _check_options(model: Any, task: str | None, given: bool) -> None:
    """InputError where options of a language model were given to something else."""
    if given and not (task == GENERATION and is_huggingface(model)):
        raise InputError(
            "features, layers and attention are those of language models.",
            fix=f"pass task={GENERATION!r}",
        )


def _check_none(*given: object) -> None:
    """InputError where inputs of a step were given, which only we can make."""
    if any(value is not None for value in given):
        raise InputError(
            "A model for generation brings its own inputs: tokens behind a cache.",
            got="inputs or dynamic",
            fix="leave them out",
        )


def _generative(
    model: PreTrainedModel,
    folder: Path | None,
    notes: dict[str, str],
    shape: Shape | None,
    **options: Any,
) -> Resolved:
    """The model as a function `step`."""
    from sdk.compilers.fixed_steps import fixed
    from sdk.compilers.huggingface_generation import generative

    made = generative(model, folder, **options)
    if shape is not None:
        made = fixed(made, width=shape[0], context=shape[1])
    return replace(_step(made, notes), calibration=made.calibration)


def _translating(model: PreTrainedModel, folder: Path | None, notes: dict[str, str]) -> Resolved:
    """The model as functions `encode` and `step`."""
    from sdk.compilers.huggingface_seq2seq import translating

    made = translating(model, folder)
    encode = Resolved(made.encode, made.source, made.source_dynamic)
    return replace(_step(made, notes), more={"encode": encode})


def _step(made: Generative | Translating, notes: dict[str, str]) -> Resolved:
    """What was made as the function `step`."""
    return Resolved(
        made.step,
        made.inputs,
        made.dynamic,
        provenance=notes,
        function="step",
        checks=made.checks,
        files=made.files,
        language=made.language,
    )


def is_huggingface(model: Any) -> bool:
    """Whether `model` is a folder, or a configuration or model of `transformers`."""
    if isinstance(model, (str, Path)):
        return Path(model).is_dir()
    transformers = sys.modules.get("transformers")  # else it cannot be one of its objects
    kinds = ("PretrainedConfig", "PreTrainedModel")
    return transformers is not None and isinstance(
        model, tuple(getattr(transformers, kind) for kind in kinds)
    )


class Flat(Named):
    """A model of transformers with positional inputs and a flat mapping of tensors as outputs."""

    def __init__(self, model: PreTrainedModel) -> None:
        parameters = inspect.signature(model.forward).parameters
        names = (name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD)
        super().__init__(
            tuple(name for name in names if name not in NO_INPUTS),
            class_name(model),
        )
        self.model = model
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        wanted = {"use_cache": False, "return_dict": True}
        self.options = {name: wanted[name] for name in wanted if anything or name in parameters}

    def take(self, inputs: Mapping[str, Any]) -> None:
        """Have just these inputs, in the order of the model's own."""
        unknown = [name for name in inputs if name not in self.input_names]
        if unknown:
            raise InputError(
                f"{type(self.model).__name__} has no input {unknown[0]!r}.",
                expected=f"some of {', '.join(self.input_names)}",
                got=", ".join(inputs),
            )
        self.input_names = tuple(name for name in self.input_names if name in inputs)

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        """The tensors in the order of `input_names` to the named outputs."""
        named = dict(zip(self.input_names, tensors, strict=False))
        return dict(_flat("", self.model(**named, **self.options)))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested records, each under the path of its names."""
    if isinstance(value, Tensor):
        yield name or "output", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in CACHES:
                yield from _flat(f"{name}_{key}" if name else key, item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _flat(f"{name or 'output'}_{index}", item)


def _load(model: Any, task: str | None) -> tuple[PreTrainedModel, dict[str, str]]:
    task = None if task == SEQ2SEQ else task  # the class that the configuration names
    if isinstance(model, (str, Path)):
        return load_folder(Path(model), task), {}
    if isinstance(model, require("transformers", purpose=PURPOSE).PreTrainedModel):
        if task not in (None, GENERATION):
            raise InputError("A model has its task already.", got=task, fix="leave task out")
        return model, {}
    return _random(model, task), {"weights": "random: made from a configuration"}


def _random(config: PretrainedConfig, task: str | None) -> PreTrainedModel:
    """The model of a configuration, with weights from seed 0."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            kind: Any = model_class(config, task)
            return cast("PreTrainedModel", kind._from_config(config).eval())
        except FAILURES as error:
            raise InputError("The configuration makes no model.", got=error) from error
