"""Texts that language models learn from: which are read, held out, and how they become rows."""

from __future__ import annotations

import email.message
import importlib.metadata
import json
import math
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import nn

from sdk.errors import InputError
from sdk.recipes.data import prompts, text
from sdk.recipes.data.exercises import HEADER, exercise, renamed
from sdk.recipes.data.prompts import Lengths
from sdk.recipes.data.text import Document
from sdk.recipes.data.tokens import END, Packing, Rows, new_tokenizer, pack, token_bytes
from sdk.recipes.objectives.language import distilled, next_token
from sdk.recipes.training.perplexity import bits

CODE = "".join(
    f"def shape_{i}(width, height):\n    area_{i} = width * height + {i}\n    return area_{i}\n\n"
    for i in range(60)
)
TEXTS = [Document(f"group{i}", f"group{i}/a.py", CODE[i * 80 :]) for i in range(20)]
AWKWARD = "naïve 日本語 😀\t\n\n  x = 'a'\r\n"


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer([CODE], 400)


def test_what_is_no_text_to_learn_from_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "a/one.py": b"x = 1\r\n",
        "a/same.py": b"x = 1\n",
        "b/latin.py": "é".encode("latin-1"),
        "b/table.py": b"x" * 1001,
        "b/long.py": b"y = 2\n" * 60_000,
        "b/tests/skipped.py": b"z = 3\n",
        "b/empty.py": b"",
        "c.py": "ö = 4\n".encode(),
        "notes.md": b"words\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = list(text.documents(str(tmp_path)))
    assert found == [Document("a", "a/one.py", "x = 1\n"), Document("c.py", "c.py", "ö = 4\n")]
    assert [one.path for one in text.documents(str(tmp_path), "*.md")] == ["notes.md"]
    with pytest.raises(InputError, match="no folder of text"):
        list(text.documents(str(tmp_path / "nowhere")))


def stated(**fields: str | list[str]) -> importlib.metadata.Distribution:
    """A package whose metadata say this."""
    metadata = email.message.Message()
    for name, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            metadata[name.replace("_", "-")] = value

    class Package(importlib.metadata.Distribution):
        def read_text(self, filename: str) -> str | None:
            return metadata.as_string() if filename == "METADATA" else None

        def locate_file(self, path: object) -> Path:
            raise NotImplementedError

    return Package()


@pytest.mark.parametrize(
    ("package", "permissive"),
    [
        (stated(License_Expression="BSD-3-Clause AND MIT"), True),
        (stated(License="Apache 2.0 License"), True),
        (stated(Classifier=["License :: OSI Approved :: MIT License"]), True),
        (stated(License="BSD\n\nparts are under the GPL"), True),
        (stated(License="MIT", Classifier=["License :: Other/Proprietary License"]), False),
        (stated(License_Expression="MPL-2.0"), False),
        (stated(License_Expression="MIT AND LGPL-2.1-only"), False),
        (stated(License="GNU General Public License"), False),
        (stated(License="see the file"), False),
        (stated(Name="silent"), False),
    ],
)
def test_only_permissive_licences_pass(
    package: importlib.metadata.Distribution, permissive: bool
) -> None:
    assert text.permissive(package) == permissive


def test_installed_packages_are_read_without_their_tests_and_copies_of_others() -> None:
    found = [(group, path) for group, path, _ in text.packages()]
    assert {"torch", "numpy"} <= {group for group, _ in found}
    assert "hypothesis" not in {group for group, _ in found}  # MPL
    assert not [path for _, path in found if {"tests", "_vendor"} & set(Path(path).parts)]


def test_groups_are_held_out_whole_and_whatever_else_there_is() -> None:
    learnt, held = text.split(TEXTS, every=4, most=0.2)
    assert sorted([*learnt, *held], key=TEXTS.index) == TEXTS
    assert 1 <= len({one.group for one in held}) <= 10
    few = [one for one in TEXTS if one.group in {"group0", *(held[0].group,)}]
    assert held[0] in text.split(few, every=4, most=1.0)[1]
    big = Document(held[0].group, "big.py", CODE * 30)
    assert big not in text.split([*TEXTS, big], every=4, most=0.2)[1]
    assert text.split(TEXTS[:2], every=10**9)[1]  # something is held out where there are two


def test_any_text_comes_back_and_bytes_are_counted(tokenizer) -> None:
    ids = tokenizer.encode(AWKWARD).ids
    assert tokenizer.decode(ids) == AWKWARD
    assert token_bytes(tokenizer)[ids].sum() == len(AWKWARD.encode())
    assert token_bytes(tokenizer)[0] == 0
    assert tokenizer.encode(END).ids == [0]
    with pytest.raises(InputError, match="100 tokens is not possible"):
        new_tokenizer([CODE], 100)


def packed(
    tokenizer, exercises: int = 0, texts: list[Document] = TEXTS, context: int = 32
) -> np.ndarray:
    return pack(texts, tokenizer, Packing(context, exercises, seed=1), lambda *_: None)


def test_every_token_is_a_target_once(tokenizer) -> None:
    rows = packed(tokenizer)
    assert rows.dtype == np.uint16
    assert np.array_equal(rows[1:, 0], rows[:-1, -1])
    stream = np.concatenate([rows[0], rows[1:, 1:].ravel()])
    order = list(TEXTS)
    Random(1).shuffle(order)
    joined = END + END.join(one.text for one in order)
    assert joined.startswith(tokenizer.decode(stream.tolist(), skip_special_tokens=False))
    inputs, targets = Rows(rows).__getitems__([3, 5])
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    with pytest.raises(InputError, match="too little text"):
        packed(tokenizer, texts=[Document("a", "a", "x = 1")])


def test_exercises_are_the_share_that_was_asked_for(tokenizer) -> None:
    rows, plain = packed(tokenizer, 200, context=160), packed(tokenizer, context=160)
    assert np.array_equal(rows[: len(plain)], plain)
    more = [tokenizer.decode(row.tolist()) for row in rows[len(plain) :]]
    assert len(more) == len(plain) // 4
    assert sum("# The same code, with" in row for row in more) > len(more) / 3
    assert not any("# The same code, with" in tokenizer.decode(row.tolist()) for row in plain)


def test_an_exercise_is_its_lines_again_with_one_name_changed() -> None:
    for seed in range(20):
        made = exercise(CODE, Random(seed))
        assert made is not None
        shown, header, rest = made.partition("# The same code, with ")
        old, new = rest.split(":\n")[0].split(" renamed to ")
        copy = made.split(":\n", made[: len(shown + header)].count(":\n") + 1)[-1]
        assert HEADER.format(old=old, new=new) in made
        assert copy.startswith(renamed(shown, old, new))
        assert old in shown
        assert CODE.count(shown)
    assert exercise("x = 1\n", Random(0)) is None
    assert exercise("= 1\n" * 20, Random(0)) is None
    assert renamed("ab abc ab", "ab", "c") == "c abc c"


def test_prompts_leave_room_for_what_they_ask_for(tokenizer, tmp_path: Path) -> None:
    lengths = Lengths(128)
    asked = list(prompts.completions(TEXTS, tokenizer, lengths, 5))
    edits = list(prompts.edits(TEXTS, tokenizer, lengths, 5))
    assert len(asked) == len(edits) == 5
    for one in (*asked, *edits):
        assert len(tokenizer.encode(one.prompt).ids) + lengths.following <= 128
    assert all(one.prompt + one.reference in CODE for one in asked)
    for one in edits:
        shown, _, rest = one.prompt.partition("# The same code, with ")
        old, new = rest.split(":\n")[0].split(" renamed to ")
        assert (rest.split(":\n", 1)[1] + one.reference) == renamed(shown, old, new)
    prompts.write(asked, tmp_path / "asked.jsonl")
    assert prompts.read(tmp_path / "asked.jsonl") == asked


def test_the_command_that_writes_prompts(
    tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    run.mkdir()
    for one in TEXTS:
        (data / f"{one.group}.py").write_text(one.text)
    tokenizer.save(str(run / "tokenizer.json"))
    settings = {"data": str(data), "pattern": "*.py", "hold_out_every": 4, "context": 128}
    (run / "settings.json").write_text(json.dumps(settings))
    prompts.main([str(run), str(tmp_path / "out"), "--count", "2"])
    assert capsys.readouterr().out == "completion: 2 prompts\nedit: 2 prompts\n"
    assert len(prompts.read(tmp_path / "out" / "edit.jsonl")) == 2


class Table(nn.Module):
    """Logits of the next token by the last one alone."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(400, 400, generator=generator))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table[ids]


def test_bits_per_byte_by_the_definition(tokenizer) -> None:
    rows, model = Rows(packed(tokenizer)[:10]), Table(0)
    lengths = torch.from_numpy(token_bytes(tokenizer))
    found = bits(model, rows, lengths, rows_used=9)
    laws = torch.log_softmax(model.table, -1).detach().double()
    pairs = [(int(a), int(b)) for row in rows.rows[:9] for a, b in pairwise(row)]
    nats = -sum(float(laws[a, b]) for a, b in pairs)
    size = sum(int(lengths[b]) for _, b in pairs)
    assert found.tokens == len(pairs) == 9 * 32
    assert found.bytes == size
    assert found.loss == pytest.approx(nats / len(pairs), rel=1e-5)
    assert found.per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_distillation_is_the_mean_divergence_and_the_texts() -> None:
    teacher, student = Table(1), Table(2)
    inputs = torch.tensor([[3, 5, 7], [2, 4, 6]])
    targets = torch.tensor([[5, 7, 9], [4, 6, 8]])
    p, q = (torch.softmax(model(inputs), -1) for model in (teacher, student))
    divergence = (p * (p / q).log()).sum(-1).mean()
    own = -q.gather(2, targets[..., None]).log().mean()
    loss = distilled(teacher, 0.75)(student(inputs), targets, inputs)
    torch.testing.assert_close(loss, 0.75 * divergence + 0.25 * own)
    torch.testing.assert_close(next_token(student(inputs), targets, inputs), own)
    same = distilled(teacher, 1.0)(teacher(inputs), targets, inputs)
    assert same.abs() < 1e-6
    loss.backward()
    assert teacher.table.grad is None
