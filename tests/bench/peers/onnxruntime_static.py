"""ONNX Runtime's own quantizer as its documentation shows it: pre-process, then quantize_static.

Its defaults are S8 activations and weights per tensor, min-max calibration, Q/DQ.
"""

from __future__ import annotations

from typing import Any

from common import order
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The calibration inputs, one by one."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def get_next(self) -> Any:
        """The next feed, or None."""
        return next(self.batches, None)


if __name__ == "__main__":
    asked = order()
    prepared = asked.output.with_name("prepared.onnx")
    quant_pre_process(asked.model, prepared)
    quantize_static(prepared, asked.output, Reader(asked.batches()))
    prepared.unlink()
