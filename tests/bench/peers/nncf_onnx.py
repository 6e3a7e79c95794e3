"""NNCF on the ONNX model, `nncf.quantize` with its defaults."""

from __future__ import annotations

import nncf
import onnx
from common import order

if __name__ == "__main__":
    asked = order()
    data = nncf.Dataset(list(asked.batches()))
    model = nncf.quantize(onnx.load(asked.model), data, subset_size=len(asked.calibration))
    onnx.save(model, asked.output)
