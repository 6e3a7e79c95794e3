"""ONNX Runtime on `decoder.onnx`: a step whose cache is one buffer, written in place.

The artifact's signature is that of any step: it reads a past and returns new rows. `run` keeps to
it, at the price of copies, for checks and profiles; `runtimes/generation/in_place.py` binds the
buffers themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sdk.errors import InputError, SignatureMismatchError
from sdk.runtimes.generation.in_place import LOW
from sdk.runtimes.onnxruntime import OnnxRuntimeSession
from sdk.runtimes.session import fill
from sdk.signature import Array

FILE = "decoder.onnx"
MASKS = ("past_mask", "new_mask")
ADDED = ("last", "room", "bias")
ROWS = ("keys", "values")


class InPlaceOnnxSession(OnnxRuntimeSession):
    """As any session, on copies; `bind` takes the file's own inputs and outputs."""

    in_place = True

    def run(
        self, feed: Mapping[str, Array], outputs: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Run once, with the past copied into buffers that have room for the new rows."""
        width = feed["tokens"].shape[1]
        length = _length(feed["past_mask"])
        lead = {name: array for name, array in feed.items() if name not in MASKS}
        for name in [name for name in lead if name.startswith("past_")]:
            heads, _, size = feed[name].shape
            lead[name] = np.zeros((1, heads, length + width, size), np.float32)
            lead[name][0, :, :length] = feed[name][:, :length]
        bias = np.zeros((1, 1, width, length + width), np.float32)
        bias[0, 0, :, length:] = np.where(_causal(feed["new_mask"]), 0, LOW)
        last, room = (np.array([rows], np.int32) for rows in (length + width - 1, length + width))
        results = super().run({**lead, **dict(zip(ADDED, (last, room, bias), strict=True))})
        found = {name: results[name] for name in self._own()}
        for what in ROWS:
            rows = [array[0, :, length:] for name, array in results.items()
                    if name.startswith(f"present_{what}_")]  # fmt: skip
            found[what] = np.stack(rows)
        return fill(found, outputs)

    def _own(self) -> list[str]:
        """The outputs that are the signature's: all but the new rows."""
        return [spec.name for spec in self.signature.outputs if spec.name not in ROWS]

    def _check_names(self) -> None:
        """The file's names are those of the signature, but for masks and what takes their place."""
        wanted = [spec.name for spec in self.signature.inputs if spec.name not in MASKS]
        past = [name for name in wanted if name.startswith("past_")]
        expected = (
            [*wanted, *ADDED],
            [*self._own(), *(name.replace("past", "present") for name in past)],
        )
        ports = self._session.get_inputs(), self._session.get_outputs()
        got = [[value.name for value in values] for values in ports]
        if any(sorted(a) != sorted(b) for a, b in zip(got, expected, strict=True)):
            raise SignatureMismatchError(
                "The engine file's inputs and outputs are not those of the manifest.",
                expected=expected,
                got=got,
                fix="compile the artifact again",
            )
        self._output_names = expected[1]


def _length(mask: Array) -> int:
    """How many rows of the past all tokens see: the first ones."""
    length = int(mask[:1].sum())
    if not (mask[:, :length].all() and not mask[:, length:].any()):
        raise InputError(
            "This decoder keeps its cache in one piece.",
            expected="a past_mask that shows all tokens the same first rows",
            got="another one",
        )
    return length


def _causal(mask: Array) -> Array:
    if np.triu(mask, 1).any():
        raise InputError(
            "A token would see a later one.",
            expected="a new_mask without true values above the diagonal",
            got="some",
        )
    return mask
