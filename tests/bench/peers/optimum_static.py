"""optimum: ORTQuantizer, static, the configuration for AVX512-VNNI, min-max calibration."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from common import order
from datasets import Dataset
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoCalibrationConfig, AutoQuantizationConfig

if __name__ == "__main__":
    asked = order()
    data = Dataset.from_dict({asked.input: list(asked.calibration)}).with_format("numpy")
    with tempfile.TemporaryDirectory() as name:
        model = Path(shutil.copy(asked.model, Path(name) / "model.onnx"))
        quantizer = ORTQuantizer(model)
        config = AutoQuantizationConfig.avx512_vnni(is_static=True)
        ranges = quantizer.fit(
            dataset=data,
            calibration_config=AutoCalibrationConfig.minmax(data),
            onnx_augmented_model_name=str(Path(name) / "augmented.onnx"),
            operators_to_quantize=config.operators_to_quantize,
        )
        quantizer.quantize(
            save_dir=name, quantization_config=config, calibration_tensors_range=ranges
        )
        shutil.copy(Path(name) / "model_quantized.onnx", asked.output)
