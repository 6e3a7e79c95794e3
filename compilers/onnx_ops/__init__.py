"""The ONNX operators that the importer knows: `OPERATORS`, from name to rule (see table.py)."""

from sdk.compilers.onnx_ops.table import OPERATORS

__all__ = ["OPERATORS"]
