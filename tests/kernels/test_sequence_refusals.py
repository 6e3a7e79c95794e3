"""The kernels on sequences say what is wrong with their inputs, and touch nothing."""

from __future__ import annotations

import pytest
import torch
from kernel_rows import native_with

from sdk.errors import EngineError
from sdk.kernels.registry import spec_of


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


LONG, DOUBLE = torch.int64, torch.float64
DAG = (zeros(2, 5, 5), zeros(2, 5), torch.tensor([5, 5]))
TARGET = (zeros(2, 5, 5), zeros(2, 3, 5), torch.tensor([5, 5]), torch.tensor([3, 3]))
CHAIN = (zeros(3, 9), zeros(2, dtype=LONG), zeros(3, 2, dtype=DOUBLE))


@pytest.mark.parametrize(
    ("name", "tensors", "attributes", "message"),
    [
        ("dag_decode", (zeros(2, 5, 4), *DAG[1:]), {}, "links: expected"),
        ("dag_decode", (DAG[0], zeros(2, 4), DAG[2]), {}, "emissions: expected"),
        ("dag_decode", (DAG[0], zeros(5), DAG[2]), {}, "emissions: expected"),
        ("dag_decode", (*DAG[:2], torch.tensor([5, 6])), {}, "lengths: expected 0 up to"),
        ("dag_decode", (*DAG[:2], torch.tensor([-1, 5])), {}, "lengths: expected 0 up to"),
        ("dag_decode", (*DAG[:2], zeros(2)), {}, "lengths: expected int64"),
        ("dag_forward", (TARGET[0], zeros(2, 3, 4), *TARGET[2:]), {}, "match: expected"),
        (
            "dag_forward",
            (*TARGET[:3], torch.tensor([3, 4])),
            {},
            "target_lengths: expected 0 up to",
        ),
        ("dag_forward", (*TARGET, zeros(2, 4, 8)), {}, "hidden: expected"),
        ("dag_forward", (*TARGET[:2], torch.tensor([9, 1]), TARGET[3]), {}, "lengths: expected 0"),
        ("residual_vq", (zeros(3, 4), zeros(2, 8, 5)), {}, "codebooks: expected float32"),
        ("residual_vq", (zeros(3, 4), zeros(2, 0, 4)), {}, "codebooks: expected 1 to"),
        ("residual_vq", (zeros(3, 4, dtype=DOUBLE), zeros(2, 8, 4)), {}, "x: expected float32"),
        ("residual_vq_decode", (zeros(3, 3, dtype=LONG), zeros(2, 8, 4)), {}, "codes: expected"),
        (
            "residual_vq_decode",
            (zeros(3, 2, dtype=LONG) + 8, zeros(2, 8, 4)),
            {},
            "codes: expected 0",
        ),
        (
            "residual_vq_decode",
            (zeros(3, 2, dtype=LONG) - 1, zeros(2, 8, 4)),
            {},
            "codes: expected 0",
        ),
        ("sample_verify", (zeros(0, 9), *CHAIN[1:]), {}, "logits: expected"),
        ("sample_verify", (CHAIN[0], zeros(3, dtype=LONG), CHAIN[2]), {}, "tokens: expected"),
        ("sample_verify", (*CHAIN[:2], zeros(3, 1)), {}, "uniforms: expected"),
        ("sample_verify", (*CHAIN, zeros(2, 8, dtype=DOUBLE)), {}, "proposals: expected"),
        ("sample_verify", CHAIN, {"temperature": 0.0}, "temperature: expected"),
        ("sample_verify", CHAIN, {"temperature": float("inf")}, "temperature: expected a finite"),
    ],
)
def test_refusals(
    name: str, tensors: tuple[torch.Tensor, ...], attributes: dict[str, float], message: str
) -> None:
    library, spec = native_with(name), spec_of(name)
    with pytest.raises(EngineError, match=f"{name} refuses") as caught:
        library.call(name, tensors, spec.bound(attributes))
    assert message in str(caught.value)
