"""Olive: a workflow of its pass OnnxStaticQuantization, all other settings at their defaults."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from common import order
from olive.data.component.dataset import BaseDataset
from olive.data.registry import Registry
from olive.workflows import run

asked = order()


@Registry.register_dataset("calibration")
def calibration(**_: Any) -> BaseDataset:
    """The calibration inputs, one by one; the loader adds the batch axis."""
    return BaseDataset([{asked.input: image} for image in asked.calibration])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        data = {"name": "calibration", "load_dataset_config": {"type": "calibration"}}
        accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
        run(
            {
                "input_model": {"type": "ONNXModel", "model_path": str(asked.model)},
                "systems": {"here": {"type": "LocalSystem", "accelerators": [accelerator]}},
                "data_configs": [data],
                "passes": {"int8": {"type": "OnnxStaticQuantization", "data_config": data["name"]}},
                "target": "here",
                "cache_dir": f"{name}/cache",
                "output_dir": f"{name}/output",
            }
        )
        (found,) = Path(name, "output").rglob("*.onnx")
        shutil.copy(found, asked.output)
