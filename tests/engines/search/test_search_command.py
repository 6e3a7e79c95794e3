"""`edge tune` on a module of the current folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from searches import flip

from sdk.cli import main
from sdk.search import run

NETS = """
import numpy as np, torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

def example_inputs():
    return torch.zeros(1, 4)

def size(predict):
    return 1.0 - float(np.abs(predict(np.zeros((1, 4), np.float32))).max() > 100)

def broken(predict):
    raise ValueError("no labels")
"""


@pytest.fixture
def edge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run `edge tune` on a module of the current folder."""
    (tmp_path / "searched_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def call(*words: str) -> tuple[int, str, str]:
        fixed = ("tune", "searched_nets:net", "-t", "torch:cpu", "-o", "n.edge", "--cache", "c")
        code = main([*fixed, "--threads", "1", *words])
        return code, *capfd.readouterr()

    yield call
    sys.modules.pop("searched_nets", None)


def test_the_command(edge: Callable[..., tuple[int, str, str]]) -> None:
    metric = ("--metric", "searched_nets:size", "--max-drop", "0.1")
    code, out, err = edge("--json", "--report", "r.html", *metric)
    data = json.loads(out)
    assert code == 0, err
    assert data["requested"] == "torch:cpu:auto"
    assert data["metric"] == "size"
    assert "candidate 2 of 7, fp16" in err
    assert "<svg" in Path("r.html").read_text()
    flip(next(Path("c").glob("builds/*/files/files/*")))
    code, out, err = edge("--overwrite", *metric)
    assert code == 0, err
    assert "is damaged: it is made again" in err
    assert "Pareto front" in out
    assert f"1 built, {len(data['candidates']) - 1} from the cache" in out


def test_the_command_used_wrongly(
    edge: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = edge("--metric", "searched_nets:broken", "--max-drop", "0.1")
    assert code == 2
    assert "The metric searched_nets:broken failed" in err
    assert "ValueError: no labels" in err
    assert edge("--report", "r.pdf")[0] == 2
    code, _, err = edge("--max-bytes", "10")
    assert code == 1
    assert "allowed" in err

    def stop(*_args: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "time_builds", stop)
    code, _, err = edge()
    assert code == 130
    assert "The same call with the same data takes them up" in err
