"""A step as ONNX Runtime runs it fastest: its own attention, whose cache is written in place.

`GroupQueryAttention` reads and writes keys and values where they lie: past and present are one
buffer of a fixed size, of which it looks at the rows in use alone. So no row is copied and no size
of the past is a shape of its own; a mask on the scores makes trees of it. Rotary positions, the
three products in front and the sums behind it go into the same few operators.

The file has other inputs than the step (see `NAMES`); `runtimes/onnxruntime_decoder.py` knows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from sdk.compilers.onnx_decoder import attention, norms, packed, rotary
from sdk.compilers.onnx_decoder.attention import Attention
from sdk.compilers.onnx_decoder.gathered import gather
from sdk.compilers.onnx_decoder.graph import DOMAIN, FLAT, Graph, perm
from sdk.compilers.program import Program
from sdk.signature import Dim, Signature

FILE = "decoder.onnx"
NAMES = ("last", "room", "bias")
"""Index of the last row in use with the new tokens [1]; rows of the buffers [1]; what is added to
the scores [1, 1, W, rows]."""
INPUTS = ("tokens", "positions", "rows", "past_mask", "new_mask")
OUTPUTS = ("logits", "keys", "values")
FEATURES = "features"
"""What a step may give besides."""
ALIGNED, TURNED = 8, 16  # what widths of heads are multiples of, and those that it can turn


def use_in_place(program: Program, file: Path) -> Path | None:
    """Write `decoder.onnx` in place of `file`, if it is a step that ONNX Runtime can attend in."""
    layers = _layers(program.signature)
    if not layers:
        return None
    model = onnx.load(file)
    graph = Graph(model.graph)
    found = [attention.find(graph, layer) for layer in range(layers)]
    known = [layer for layer in found if layer is not None]
    if len(known) != layers:
        return None
    _Rewrite(model, graph, program.signature).attend(known)
    norms.fuse(graph)
    gather(graph)
    if any(graph.readers[name] for name in ("past_mask", "new_mask")):
        return None
    kept = [value for value in model.graph.input if value.name not in ("past_mask", "new_mask")]
    model.graph.ClearField("input")
    model.graph.input.extend(kept)
    if all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    file.unlink()
    made = file.with_name(FILE)
    made.write_bytes(model.SerializeToString())
    return made


def _layers(signature: Signature) -> int:
    """How many there are in a whole step; 0 for anything else."""
    names = tuple(spec.name for spec in signature.inputs)
    given = tuple(spec.name for spec in signature.outputs)
    if names[: len(INPUTS)] != INPUTS or given not in (OUTPUTS, (*OUTPUTS, FEATURES)):
        return 0
    (width, *others) = {spec.shape[2] for spec in signature.inputs[len(INPUTS) :]}
    fits = not others and isinstance(width, int) and width % ALIGNED == 0
    return (len(names) - len(INPUTS)) // 2 if fits else 0


@dataclass(frozen=True)
class _Rewrite:
    """The graph of one step while its attention is replaced."""

    model: onnx.ModelProto
    graph: Graph
    signature: Signature

    def attend(self, layers: list[Attention]) -> None:
        """Give each layer the operator, and the graph its inputs and outputs."""
        angles = self._angles(layers[0])
        for index, layer in enumerate(layers):
            self._attend(index, layer, angles)
        proto = self.model.graph
        values = [value for value in proto.output if value.name in (OUTPUTS[0], FEATURES)]
        proto.ClearField("output")
        proto.output.extend(values)
        for value in proto.input:
            if value.name.startswith(("past_keys_", "past_values_")):
                self._widen(value)
        shapes: list[list[int | str | None]] = [[1], [1], [1, 1, "width", "past"]]
        kinds = (TensorProto.INT32, TensorProto.INT32, TensorProto.FLOAT)
        proto.input.extend(
            helper.make_tensor_value_info(name, kind, shape)
            for name, kind, shape in zip(NAMES, kinds, shapes, strict=True)
        )
        self.graph.sort()

    def _widen(self, value: onnx.ValueInfoProto) -> None:
        """A buffer of the cache [1, H, P, D], and its twin among the outputs."""
        heads, _, width = (dim.dim_value for dim in value.type.tensor_type.shape.dim)
        shape = [1, heads, "past", width]
        made = helper.make_tensor_value_info(value.name, TensorProto.FLOAT, shape)
        value.CopyFrom(made)
        made.name = present(value.name)
        self.model.graph.output.append(made)

    def _angles(self, layer: Attention) -> Angles | None:
        """The rotation that the first layer begins with, as stored tables."""
        found = rotary.find(self.graph, layer.query)
        _, rows, width = self.signature.inputs[len(INPUTS)].shape
        if found is None or not isinstance(width, int) or width % TURNED:
            return None
        capacity = rows.max if isinstance(rows, Dim) else rows
        made = rotary.tables(self.model, self.graph, found, capacity, width)
        if made is None:
            return None
        names = (f"rotary.{what}" for what in ("cos", "sin"))
        cos, sin = map(self.graph.store, names, made)
        return Angles((found.cos, found.sin), (cos, sin))

    def _attend(self, index: int, layer: Attention, angles: Angles | None) -> None:
        graph, turned = self.graph, [layer.query, layer.keys]
        rotations = [rotary.find(graph, name) for name in turned]
        if angles is not None and all(map(angles.are_of, rotations)):
            turned = [rotation.turned for rotation in rotations if rotation is not None]
            rotated: list[str] = [*angles.tables, "positions"]
        else:
            rotated = ["", "", ""]
        flat = [self._flat(name) for name in (*turned, layer.values)]
        whole = packed.pack(graph, flat)
        past = [f"past_{what}_{index}" for what in ("keys", "values")]
        graph.maker[layer.output].output[0] = f"{layer.output}.before"
        graph.add(
            "GroupQueryAttention",
            [
                *(flat if whole is None else [whole, "", ""]),
                *past,
                "last",
                "room",
                *rotated,
                "bias",
            ],
            [layer.output, *map(present, past)],
            domain=DOMAIN,
            num_heads=layer.heads,
            kv_num_heads=self.signature.inputs[len(INPUTS)].shape[0],
            scale=layer.scale,
            do_rotary=int(rotated[0] != ""),
        )

    def _flat(self, name: str) -> str:
        """[1, heads, W, D] as [1, W, heads * D]."""
        graph = self.graph
        turned = graph.made_by(name, "Transpose")
        if turned is None or perm(turned) != [0, 2, 1, 3]:
            graph.add("Transpose", [name], [f"{name}.turned"], perm=[0, 2, 1, 3])
            name = f"{name}.turned"
        else:
            name = turned.input[0]
            split = graph.made_by(name, "Reshape")
            if split is not None and graph.made_by(split.input[0], *FLAT) is not None:
                return str(split.input[0])
        shape = graph.store("heads.side.by.side", np.array([0, 0, -1]))
        graph.add("Reshape", [name, shape], [f"{name}.flat"])
        return f"{name}.flat"


@dataclass(frozen=True)
class Angles:
    """A rotation's cosines and sines: the values of some tokens, and tables of all positions."""

    values: tuple[str, str]
    tables: tuple[str, str]

    def are_of(self, rotation: rotary.Rotation | None) -> bool:
        """Whether something is turned by these."""
        return rotation is not None and (rotation.cos, rotation.sin) == self.values


def present(name: str) -> str:
    """The output that is the buffer `name` with new rows."""
    return name.replace("past_", "present_", 1)
