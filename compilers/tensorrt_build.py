"""The builder of either TensorRT library: ONNX in, serialized engine out, errors as ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdk.compilers.program import SourceLine
from sdk.errors import EngineError, UnsupportedOperatorError
from sdk.nvidia import listener, load
from sdk.signature import Dim, Signature

Progress = Callable[[str, int, int], None]
QUOTED = 5  # lines of the library's log that an error quotes


@dataclass(frozen=True)
class Order:
    """What to build: with which library, for which inputs, GPUs and precision."""

    library: str
    signature: Signature
    precision: str
    capabilities: Sequence[str]
    """As `sm89`; none for the library's own default."""


def build_engine(
    model: bytes,
    sources: Mapping[str, SourceLine],
    order: Order,
    progress: Progress | None = None,
) -> bytes:
    """The serialized engine of an ONNX model.

    `progress` gets (phase, done, total) of the builder's phases. Raises UnsupportedOperatorError
    where the parser or the builder refuses a node, and EngineError with the library's log.
    """
    trt = load(order.library)
    logger, monitor = listener(trt), _monitor(trt, progress)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, logger, model, sources)
    _check_types(trt, network, order.signature)
    config = _config(trt, builder, order)
    config.progress_monitor = monitor
    built = builder.build_serialized_network(network, config)
    if monitor.stopped is not None:
        raise monitor.stopped
    if built is None:
        raise _refused("TensorRT could not build the network.", logger.errors, sources)
    return bytes(built)


def capabilities_of(library: str) -> tuple[str, ...]:
    """Those that the library can build for ahead of time, as `sm89`, oldest first."""
    names = getattr(load(library), "ComputeCapability", None)
    known = {} if names is None else names.__members__
    return tuple(name.lower() for name in known if name.startswith("SM"))


def _parse(
    trt: Any, network: Any, logger: Any, model: bytes, sources: Mapping[str, SourceLine]
) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse(model):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        raise _refused("TensorRT cannot read the model.", logger.errors, sources)
    first = errors[0]
    raise UnsupportedOperatorError(
        f"TensorRT does not take the operator {first.node_operator() or 'of this model'}.",
        got=f"node {first.node_name()!r}{place(sources.get(first.node_name()))}: "
        f"{_reason(first.desc())}",
        fix="write the operator with others, try another precision, or compile for 'onnxruntime'",
    )


def _check_types(trt: Any, network: Any, signature: Signature) -> None:
    """Inputs and outputs must have the signature's types: nothing is cast in silence."""
    inputs = (network.get_input(index) for index in range(network.num_inputs))
    outputs = (network.get_output(index) for index in range(network.num_outputs))
    types = {tensor.name: trt.nptype(tensor.dtype) for tensor in (*inputs, *outputs)}
    for spec in (*signature.inputs, *signature.outputs):
        if np.dtype(types[spec.name]) != spec.dtype:
            raise UnsupportedOperatorError(
                f"TensorRT has no {spec.dtype} for the input or output {spec.name!r}.",
                expected=spec.dtype,
                got=np.dtype(types[spec.name]).name,
                fix=f"let the model take or return {np.dtype(types[spec.name]).name}",
            )


def _config(trt: Any, builder: Any, order: Order) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: fp32 with the mantissa of fp16
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.add_optimization_profile(_profile(builder, order.signature))
    if order.capabilities:
        config.num_compute_capabilities = len(order.capabilities)
    for index, name in enumerate(order.capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), index)
    return config


def _profile(builder: Any, signature: Signature) -> Any:
    """The smallest, usual and largest shape of each input whose sizes vary."""
    profile = builder.create_optimization_profile()
    for spec in signature.inputs:
        if any(isinstance(dim, Dim) for dim in spec.shape):
            shapes = ([_size(dim, at) for dim in spec.shape] for at in ("min", "opt", "max"))
            profile.set_shape(spec.name, *shapes)
    return profile


def _size(dim: int | Dim, at: str) -> int:
    return dim if isinstance(dim, int) else int(getattr(dim, at))


def place(source: SourceLine | None) -> str:
    """` in module 'x' at file.py:3: code`, as far as it is known."""
    if source is None:
        return ""
    return f" in module {source.module!r}" * bool(source.module) + (
        f" at {source.line}" * bool(source.line)
    )


def _refused(
    what: str, errors: Sequence[str], sources: Mapping[str, SourceLine]
) -> EngineError | UnsupportedOperatorError:
    """UnsupportedOperatorError where the log names a node of the model, else EngineError."""
    text = " | ".join(dict.fromkeys(map(_reason, errors[:QUOTED]))) or "it logged no error"
    node = max((name for name in sources if name in text), key=len, default=None)
    if node is None:
        return EngineError(what, got=text, fix="try another precision, or compile for another GPU")
    return UnsupportedOperatorError(
        what,
        got=f"node {node!r}{place(sources[node])}: {text}",
        fix="write the operator with others, or try another precision",
    )


def _reason(text: str) -> str:
    """The log line without what the absence of a GPU adds to each."""
    lines = [line for line in text.splitlines() if "cudaError 35" not in line]
    return " ".join(lines or text.splitlines())[:500]


def _monitor(trt: Any, progress: Progress | None) -> Any:
    """Reports phases, and holds what is raised meanwhile, which the library would swallow."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}
            self.stopped: BaseException | None = None

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self.totals[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                if progress is not None:
                    progress(phase.lower(), step + 1, self.totals[phase])
            # Whatever the caller's function raises, Ctrl-C too: TensorRT would drop it and go on.
            # `build_engine` raises it when the library has returned.
            except BaseException as error:  # noqa: BLE001
                self.stopped = error
            return self.stopped is None

        def phase_finish(self, phase: str) -> None:
            self.totals.pop(phase, None)

    return Monitor()
