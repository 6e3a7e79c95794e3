"""`edge::linear_nbits` and `edge::linear_fdb`: packing, refusals, and what zeros save."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_rows import Case, native_with

from sdk.errors import EngineError, InputError
from sdk.kernels.linear_fdb import packing as fdb
from sdk.kernels.linear_nbits import packing as nbits
from sdk.kernels.registry import spec_of


def case_of(name: str, wanted: str) -> Case:
    return next(c for c in spec_of(name).sample(np.random.default_rng(0)) if c.name == wanted)


@pytest.mark.parametrize("bits", nbits.BITS)
@pytest.mark.parametrize("columns", [1, 16, 50])
def test_weights_unpack_to_what_was_packed(bits: int, columns: int) -> None:
    q = torch.randint(0, 1 << bits, (columns, 96), dtype=torch.uint8)
    packed = nbits.pack_weight(q, bits)
    assert packed.numel() == -(-columns // 16) * 16 * 96 * bits // 8
    unpacked = nbits.unpack_weight(packed, bits)
    assert torch.equal(unpacked[:columns], q)
    assert not unpacked[columns:].any()


def test_planes_unpack_to_what_was_packed() -> None:
    planes = torch.rand(2, 37, 96) < 0.4
    packed = fdb.pack_planes(planes)
    assert packed.numel() == 48 * 96 * 2 // 8
    assert torch.equal(fdb.unpack_planes(packed)[:, :37].bool(), planes)


@pytest.mark.parametrize(
    ("name", "attributes", "told"),
    [
        ("linear_nbits", {"group": 24}, "multiple of 16"),
        ("linear_nbits", {"group": 0}, "multiple of 16"),
        ("linear_nbits", {"group": 80}, "does not divide"),
        ("linear_nbits", {"bits": 5}, "bits is not 2, 3, 4 or 8"),
        ("linear_nbits", {"bits": 8}, "weight is not uint8"),
        ("linear_nbits", {"columns": 65}, "fewer than `columns`"),
        ("linear_nbits", {"columns": -1}, "fewer than `columns`"),
        ("linear_nbits", {"columns": 49}, "bias is not float32"),
        ("linear_fdb", {"group": 16}, "multiple of 32"),
        ("linear_fdb", {"group": 128}, "does not divide"),
        ("linear_fdb", {"columns": 177}, "fewer than `columns`"),
    ],
)
def test_wrong_attributes_are_refused(name: str, attributes: dict[str, int], told: str) -> None:
    case = case_of(name, "w4, 2 rows" if name == "linear_nbits" else "2 rows")
    spec, library = spec_of(name), native_with(name)
    with pytest.raises(EngineError, match=told):
        library.call(name, case.tensors, spec.bound({**case.attributes, **attributes}))
    if "divide" in told or "multiple" in told or "bits" in attributes:
        with pytest.raises(InputError):
            spec.reference(*case.tensors, **{**case.attributes, **attributes})


@pytest.mark.parametrize("name", ["linear_nbits", "linear_fdb"])
@pytest.mark.parametrize("place", range(3))
def test_wrong_tensors_are_refused(name: str, place: int) -> None:
    case = case_of(name, "w4, 2 rows" if name == "linear_nbits" else "2 rows")
    for wrong in (torch.zeros(2, 3, 4, 5), torch.zeros(7, dtype=torch.int64)):
        tensors = [*case.tensors[:place], wrong, *case.tensors[place + 1 :]]
        with pytest.raises(EngineError, match=r"not|fewer"):
            native_with(name).call(name, tensors, spec_of(name).bound(case.attributes))


def test_planes_without_bits_are_not_read() -> None:
    """Garbage in a plane whose scales are zero changes nothing."""
    case = case_of("linear_fdb", "3 rows")
    x, planes, scales, bias = case.tensors
    assert planes is not None
    assert scales is not None
    scales, spoiled = scales.clone(), planes.clone()
    scales[:, :, 1] = 0
    spoiled.unflatten(1, (-1, 2, 64))[:, :, 1] = 170
    call, values = native_with("linear_fdb").call, spec_of("linear_fdb").bound(case.attributes)
    (got,) = call("linear_fdb", [x, spoiled, scales, bias], values)
    (want,) = call("linear_fdb", [x, planes, scales, bias], values)
    assert torch.equal(got, want)


@pytest.mark.parametrize("pack", [nbits.pack_weight, lambda q, _bits: fdb.pack_planes(q[None])])
def test_what_cannot_be_packed_is_refused(pack: object) -> None:
    with pytest.raises(InputError):
        pack(torch.zeros(4, 33, dtype=torch.uint8), 4)  # type: ignore[operator]
