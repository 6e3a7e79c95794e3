"""Image sets: folders and parquet files, the labelled share, and SSLD's choice of the pool."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import sdk
from sdk.recipes.data import images, pool


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def silent(_what: str, _done: int, _total: int) -> None:
    return None


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def test_parquet_and_folder_give_the_same_set(tmp_path: Path, pictures: np.ndarray) -> None:
    labels = [0, 1, 0, 1, 0, 1]
    flat, nested = tmp_path / "flat", tmp_path / "nested"
    flat.mkdir()
    table = pa.table({"image": [png(p) for p in pictures], "label": labels})
    for split in ("train", "test"):
        pq.write_table(table, flat / f"{split}.parquet")
        for i, label in enumerate(labels):
            file = nested / split / "ab"[label] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(pictures[i]))
    (flat / "labels.txt").write_text("a\nb\n")
    from_parquet, _ = images.load(str(flat), 8, tmp_path / "1", silent)
    from_folder, _ = images.load(str(nested), 8, tmp_path / "2", silent)
    order = np.argsort(labels, kind="stable")
    assert from_parquet.classes == from_folder.classes == ("a", "b")
    assert np.array_equal(from_parquet.pixels[order], from_folder.pixels)
    assert np.array_equal(from_parquet.pixels, pictures)
    again, _ = images.load(str(flat), 8, tmp_path / "1", silent)
    assert np.array_equal(again.pixels, from_parquet.pixels)


def test_what_is_wrong_with_the_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(sdk.InputError, match="data folder is not there"):
        images.load(str(tmp_path / "none"), 8, tmp_path, silent)
    with pytest.raises(sdk.InputError, match="no 'train' part"):
        images.load(str(tmp_path), 8, tmp_path, silent)
    pq.write_table(pa.table({"picture": [b""]}), tmp_path / "train.parquet")
    with pytest.raises(sdk.InputError, match=r"lacks the columns \['image', 'label'\]"):
        images.load(str(tmp_path), 8, tmp_path, silent)
    broken = pa.table({"image": [b"not an image"], "label": [0]})
    pq.write_table(broken, tmp_path / "train.parquet")
    with pytest.raises(sdk.InputError, match="cannot be decoded"):
        images.load(str(tmp_path), 8, tmp_path / "cache", silent)


def test_no_data_setting_and_no_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(images.DATA_VARIABLE, raising=False)
    with pytest.raises(sdk.InputError, match="EDGE_DATA"):
        images.load("", 8, tmp_path, silent)


def test_the_labelled_share_has_the_classes_in_equal_parts() -> None:
    labels = np.repeat(np.arange(4), [100, 50, 20, 10])
    chosen = images.stratified(labels, 36, seed=3)
    assert np.bincount(labels[chosen]).tolist() == [9, 9, 9, 9]
    assert len(set(chosen)) == 36
    assert np.array_equal(chosen, images.stratified(labels, 36, seed=3))


def test_a_planted_copy_of_a_test_image_leaves_the_pool() -> None:
    rng = np.random.default_rng(1)
    train = rng.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    test = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    train[17] = np.clip(test[2].astype(int) + rng.integers(-3, 4, test[2].shape), 0, 255)
    assert np.array_equal(pool.without_copies(train, test), np.delete(np.arange(50), 17))


def test_the_surest_images_of_each_predicted_class_stay() -> None:
    probabilities = np.random.default_rng(2).dirichlet(np.ones(3), 60).astype(np.float32)
    kept = pool.surest(probabilities, per_class=5)
    for c in range(3):
        members = np.flatnonzero(probabilities.argmax(1) == c)
        best = members[np.argsort(-probabilities[members, c])][:5]
        assert set(kept) & set(members) == set(best)
