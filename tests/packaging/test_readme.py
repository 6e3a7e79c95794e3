"""README.md's commands work.

A block marked ```` ```python run ```` or ```` ```bash run ```` is run, in order of appearance, in
one empty folder with this environment's commands in reach. Other blocks are only shown.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

README = Path(__file__).parents[2] / "README.md"
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, whether it is run, its text and its line in the file."""

    language: str
    run: bool
    code: str
    line: int


def blocks(text: str) -> list[Block]:
    """The fenced blocks; a mark other than `run` is a ValueError."""
    found = []
    for match in FENCE.finditer(text):
        language, *marks = match[1].split() or [""]
        line = text.count("\n", 0, match.start()) + 1
        if marks not in ([], ["run"]) or (marks and language not in ("bash", "python")):
            raise ValueError(f"line {line}: the block is marked {match[1]!r}")
        found.append(Block(language, bool(marks), match[2], line))
    return found


def execute(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block in `folder`, from a file: torch.export and tracebacks read the source."""
    file = folder / f"readme_line_{block.line}.{'py' if block.language == 'python' else 'sh'}"
    file.write_text(block.code)
    command = {"python": [sys.executable], "bash": ["bash", "-euo", "pipefail"]}[block.language]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [*command, file.name],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_readme_blocks_run(tmp_path: Path) -> None:
    runnable = [block for block in blocks(README.read_text()) if block.run]
    if not runnable:
        pytest.skip("README.md has no block that is marked `python run` or `bash run`")
    for block in runnable:
        done = execute(block, tmp_path)
        assert done.returncode == 0, (
            f"README.md:{block.line}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        )


def test_blocks_are_found_with_their_marks() -> None:
    text = "a\n```bash run\nls\n```\n\n```python\nx\n```\n```\nplain\n```\n"
    assert blocks(text) == [
        Block("bash", True, "ls\n", 2),
        Block("python", False, "x\n", 6),
        Block("", False, "plain\n", 9),
    ]


@pytest.mark.parametrize("mark", ["bash runn", "python run twice", "json run"])
def test_a_misspelt_mark_is_an_error(mark: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        blocks(f"```{mark}\nx\n```\n")


@pytest.mark.parametrize(
    "block",
    [Block("bash", True, "false | true\n", 1), Block("python", True, "import nothing_here\n", 1)],
    ids=["bash", "python"],
)
def test_a_failing_block_fails(block: Block, tmp_path: Path) -> None:
    assert execute(block, tmp_path).returncode != 0
