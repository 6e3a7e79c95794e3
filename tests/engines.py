"""The rows of the parity tests: one for each engine, device and precision.

A new engine adds its rows here, and its name to `NAMES`, which keeps a row from getting lost.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from sdk.runtimes import probe
from sdk.target import Target

REQUIRED = tuple(filter(None, os.environ.get("EDGE_REQUIRE", "").split(",")))


@dataclass(frozen=True)
class Engine:
    """One row. `xfail` maps the name of a case that fails on it to the reason."""

    target: Target
    xfail: Mapping[str, str] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    """The cases that say something at this precision; none means all."""
    quick: tuple[str, ...] | None = None
    """The cases that every run tries, where the others would take too long together."""

    def __str__(self) -> str:
        return str(self.target)

    def missing(self) -> str | None:
        """Why the row cannot run on this machine, or None."""
        target, found = self.target, probe(self.target.engine)
        device = found.devices.get(target.device)
        if device is None:
            return found.reason or f"{target.engine} has no device {target.device} here"
        if not device.compile:
            return device.reason
        if target.precision not in device.precisions:
            return f"{target.engine} does not run {target.precision} on this machine"
        return None

    def require(self) -> None:
        """Skip where the row cannot run; fail where EDGE_REQUIRE names it (`openvino,torch`)."""
        reason = self.missing()
        if reason is None:
            return
        if any(str(self).startswith(name) for name in REQUIRED):
            pytest.fail(f"EDGE_REQUIRE={','.join(REQUIRED)}, but {self}: {reason}")
        pytest.skip(f"{self}: {reason}")


def row(
    target: str,
    only: tuple[str, ...] = (),
    quick: tuple[str, ...] | None = None,
    **xfail: str,
) -> Engine:
    """A row; keywords are cases that fail on it, with the reason."""
    return Engine(Target.parse(target), xfail, only, quick)


# Cases with linear or embedding layers. Theirs are too narrow for groups: int4 and int2 are tried
# in test_weight_only.py.
LINEAR = ("attention", "tied_weights", "conv1d")


FIXED = "the NPU runs fixed shapes only"
DYNAMIC = {
    name: FIXED for name in ("mlp", "attention", "tied_weights", "echo", "scalar", "buffers")
}

ROWS = (
    row("onnxruntime:cpu:fp32"),
    row("onnxruntime:cpu:fp16"),
    row("onnxruntime:cpu:int8"),
    row("onnxruntime:cpu:w8", LINEAR),
    row("onnxruntime:npu:fp16", **DYNAMIC),
    row("onnxruntime:npu:int8", several="few sums of products that are a step apart", **DYNAMIC),
    row("onnxruntime:npu:a16w8", **DYNAMIC),
    row("openvino:cpu:fp32"),
    row("openvino:cpu:fp16"),
    row("openvino:cpu:bf16"),
    row("openvino:cpu:int8"),
    row("openvino:cpu:w8", LINEAR),
    row("coreml:cpu:fp32", quick=("conv_transpose", "echo", "scalar")),
    row("coreml:cpu:fp16", quick=("mobile_block", "attention", "several")),
    row("coreml:cpu:int8", quick=("conv_bn_relu", "upsample", "buffers")),
    row("coreml:cpu:w8", LINEAR, quick=("conv1d",)),  # int4, int2 and palettes: test_coreml.py
    row("tensorrt:gpu:fp32"),  # int8, bf16, fp8 and int4: test_tensorrt_build.py
    row("tensorrt:gpu:fp16"),
    row("torch:cpu:fp32"),
    row("torch:cpu:fp16"),
    row("torch:cpu:bf16"),
    row("torch:cpu:int8"),
    row("torch:cpu:w8", LINEAR),
    row("torch:gpu:fp32"),
)

NAMES = (
    "onnxruntime:cpu:fp32", "onnxruntime:cpu:fp16", "onnxruntime:cpu:int8", "onnxruntime:cpu:w8",
    "onnxruntime:npu:fp16", "onnxruntime:npu:int8", "onnxruntime:npu:a16w8",
    "openvino:cpu:fp32", "openvino:cpu:fp16", "openvino:cpu:bf16", "openvino:cpu:int8",
    "openvino:cpu:w8",
    "coreml:cpu:fp32", "coreml:cpu:fp16", "coreml:cpu:int8", "coreml:cpu:w8",
    "tensorrt:gpu:fp32", "tensorrt:gpu:fp16",
    "torch:cpu:fp32", "torch:cpu:fp16", "torch:cpu:bf16", "torch:cpu:int8", "torch:cpu:w8",
    "torch:gpu:fp32",
)  # fmt: skip
