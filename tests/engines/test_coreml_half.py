"""Half precision for Core ML: numbers that fp16 has not, and where a failure is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sdk
from sdk import localize
from sdk.checking import open_build
from sdk.compilers import lower
from sdk.compilers.capture import capture
from sdk.compilers.cut import cut
from sdk.compilers.half import to_half
from sdk.errors import SignatureMismatchError
from sdk.parity import TOLERANCE, compare
from sdk.target import Target

pytest.importorskip("coremltools")
TARGET = Target("coreml", precision="fp16")
X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Masked(nn.Module):
    """Attention of tokens to themselves, in which a lowest number stands for what is masked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Linear(8, 8), nn.LayerNorm(8, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layer(x))
        low = torch.finfo(x.dtype).min
        shown = torch.stack([x.sum(1) > -1e9, x.sum(1) > 1e9])  # the second token sees nothing
        scores = (x @ x.T).masked_fill(~shown, low)
        return torch.softmax(scores, -1) @ x


def test_a_mask_of_the_lowest_float_stays_finite(tmp_path: Path) -> None:
    artifact = sdk.compile(
        Masked().eval(), inputs=X, target=TARGET, output=tmp_path / "m.edge", threads=1
    )
    assert artifact.manifest.target == str(TARGET)


def test_parts_of_a_half_program_have_layer_norms(tmp_path: Path) -> None:
    feed = {"x": X.numpy()}
    half = to_half(capture(Masked().eval(), X), "fp16", feed)
    part = cut(half, ["layer_norm"], feed)
    build = lower(part, TARGET, tmp_path / "build")
    session = open_build(build, part, TARGET, threads=1)
    report = compare(session.run(feed), part.reference(feed), TOLERANCE["fp16"])
    session.close()
    assert report.ok, report


def test_a_part_that_an_engine_spoils_does_not_hide_what_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SignatureMismatchError("The file's outputs are not those of the signature.")

    monkeypatch.setattr(localize, "open_build", fail)
    program = capture(Masked().eval(), X)
    found = localize.engine_divergence(
        program, Target("torch"), {"x": X.numpy()}, tmp_path, threads=1
    )
    assert found is not None
    assert "are not those of the signature" in str(found)
