"""What the command line gives as text or files becomes arrays, dims, batches and processors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from sdk.cli import inputs
from sdk.errors import InputError
from sdk.processor import Classification, ImageProcessor, Processor
from sdk.signature import Dim

PROCESSOR = Processor("x", ImageProcessor(size=(8, 6)))


def test_shapes_become_named_arrays_that_are_the_same_each_time() -> None:
    shapes = ["x=1x3x8x8", "ids=2x5:int64", "mask=4:bool", "half=2:float16"]
    made = inputs.random_inputs(shapes)
    found = {name: (array.shape, str(array.dtype)) for name, array in made.items()}
    assert found == {
        "x": ((1, 3, 8, 8), "float32"),
        "ids": ((2, 5), "int64"),
        "mask": ((4,), "bool"),
        "half": ((2,), "float16"),
    }
    assert made["x"].std() > 0.5
    again = inputs.random_inputs(shapes)
    assert all(np.array_equal(made[name], again[name]) for name in made)


@pytest.mark.parametrize("text", ["1x3", "x=", "x=1x", "x=1x-3", "x=0x3", "x=1x3:floaty", "=1x3"])
def test_a_wrong_shape_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="does not parse"):
        inputs.random_inputs([text])


def test_dynamic_sizes() -> None:
    assert inputs.parse_dynamic(["x:0=batch:1:2:16", "x:2=width", "y:0=batch:1:2:16"]) == {
        "x": {0: Dim("batch", 1, 2, 16), 2: Dim("width")},
        "y": {0: Dim("batch", 1, 2, 16)},
    }


@pytest.mark.parametrize(
    "text", ["x=batch", "x:0", "x:a=b", "x:0=batch:1:2", ":0=b", "x:0=b:1:2:z"]
)
def test_a_wrong_dynamic_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="does not parse"):
        inputs.parse_dynamic([text])


def test_reads_arrays_by_suffix(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    save_file({"x": x}, tmp_path / "x.safetensors")
    assert np.array_equal(np.asarray(inputs.load_arrays(tmp_path / "x.npy")), x)
    for suffix in ("npz", "safetensors"):
        loaded = inputs.load_arrays(tmp_path / f"x.{suffix}")
        assert isinstance(loaded, dict)
        assert np.array_equal(loaded["x"], x)


def _pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def _text(path: Path) -> None:
    path.write_text("hello")


@pytest.mark.parametrize(
    ("name", "write"),
    [("x.npy", _pickled), ("x.npy", _text), ("x.npz", _text), ("x.safetensors", _text),
     ("x.npy", lambda path: None), ("x.csv", _text)],
)  # fmt: skip
def test_unreadable_arrays_are_refused(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(InputError, match=r"cannot be read|There is no file|not a file of arrays"):
        inputs.load_arrays(tmp_path / name)


def test_batches_fill_and_say_what_is_left_out() -> None:
    rows = {"x": np.arange(7), "y": np.arange(7) * 10}
    made, left_out = inputs.batches(rows, 3)
    assert [batch["y"].tolist() for batch in made if isinstance(batch, dict)] == [
        [0, 10, 20],
        [30, 40, 50],
    ]
    assert left_out == 1


@pytest.mark.parametrize(
    "rows", [{"x": np.zeros(2)}, {"x": np.zeros(4), "y": np.zeros(5)}, {"x": np.float32(1)}]
)
def test_too_few_or_unequal_rows_are_refused(rows: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError, match="does not fill a batch"):
        inputs.batches({name: np.asarray(array) for name, array in rows.items()}, 3)


def test_the_batch_is_the_example_s_or_the_most_that_is_allowed() -> None:
    example = {"x": np.zeros((2, 3))}
    assert inputs.batch_size(example, {}) == 2
    assert inputs.batch_size(example["x"], {}) == 2
    assert inputs.batch_size((example["x"],), {"x": {1: Dim("w", 1, 1, 9)}}) == 2
    assert inputs.batch_size(example, {"x": {0: Dim("batch", 1, 1, 9)}}) == 9


def test_a_folder_of_images_goes_through_the_processor(tmp_path: Path) -> None:
    for shade in (10, 200):
        Image.new("RGB", (6, 8), (shade,) * 3).save(tmp_path / f"{shade:03}.png")
    (tmp_path / "notes.txt").touch()
    rows = inputs.calibration_rows(tmp_path, PROCESSOR)
    assert isinstance(rows, dict)
    assert rows["x"].shape == (2, 3, 8, 6)
    assert np.allclose(rows["x"].mean(axis=(1, 2, 3)), [10 / 255, 200 / 255])


def test_images_need_a_processor_and_a_folder_needs_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs a processor"):
        inputs.calibration_rows(tmp_path, None)
    with pytest.raises(InputError, match="no images"):
        inputs.calibration_rows(tmp_path, PROCESSOR)


def test_labels_join_the_processor(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(PROCESSOR.to_json()))
    (tmp_path / "labels.txt").write_text("cat\n dog \n\n")
    assert inputs.load_processor(tmp_path / "p.json", None) == PROCESSOR
    labelled = inputs.load_processor(tmp_path / "p.json", tmp_path / "labels.txt")
    assert labelled is not None
    assert labelled.post == Classification(("cat", "dog"))
    assert labelled.output == "output"


@pytest.mark.parametrize("text", ["{", "[]", '{"input": 3}', '{"input": "x", "color": 1}'])
def test_a_wrong_processor_file_is_an_input_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(InputError, match="is not a processor"):
        inputs.load_processor(tmp_path / "p.json", None)


def test_labels_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Labels need a processor"):
        inputs.load_processor(None, tmp_path / "labels.txt")
