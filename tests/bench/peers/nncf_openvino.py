"""NNCF on the OpenVINO model, `nncf.quantize` with its defaults: OpenVINO's own XML and weights."""

from __future__ import annotations

import nncf
import openvino as ov
from common import order

if __name__ == "__main__":
    asked = order()
    model = ov.convert_model(asked.model)
    data = nncf.Dataset(list(asked.batches()))
    ov.save_model(nncf.quantize(model, data, subset_size=len(asked.calibration)), asked.output)
