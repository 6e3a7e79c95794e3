"""Hugging Face folders, configurations and models: what is made of them, and what is refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from coverage.architectures import ARCHITECTURES
from PIL import Image

import sdk
from sdk.compilers.huggingface import resolve
from sdk.signature import Dim

SIZES = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 24}  # fmt: skip
EDIT = Callable[[Path], Any]


def bert() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**SIZES)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model."""
    bert().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection fails the test."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_folder_becomes_an_artifact_that_computes_the_model(folder: Path, tmp_path: Path) -> None:
    artifact = sdk.compile(folder, target="onnxruntime", output=tmp_path / "m.edge", threads=1)
    assert artifact.manifest.provenance["source"].endswith("modeling_bert.BertModel")
    ids = np.array([[5, 6, 7, 8, 9], [11, 12, 13, 14, 15]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with sdk.load(artifact.path, threads=1) as model:
        got = model.predict({"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        want = bert()(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
    assert list(got) == ["last_hidden_state", "pooler_output"]
    for name, value in got.items():
        np.testing.assert_allclose(value, want[name], atol=1e-5)


def test_configuration_gets_random_weights_and_says_so(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2, n_positions=24)
    config.architectures = ["GPT2LMHeadModel"]
    artifact = sdk.compile(config, target="torch", output=tmp_path / "m.edge", threads=1)
    assert artifact.manifest.provenance["weights"].startswith("random")
    assert [spec.name for spec in artifact.manifest.functions["main"].signature.outputs] == [
        "logits"  # and no cache
    ]


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("GPT-2", {"input_ids": (1, 16), "attention_mask": (1, 16)}),
        ("T5", {"input_ids": (1, 16), "attention_mask": (1, 16), "decoder_input_ids": (1, 16)}),
        ("Whisper", {"input_features": (1, 16, 64), "decoder_input_ids": (1, 16)}),
        ("Wav2Vec2", {"input_values": (1, 16_000)}),
        ("ViT", {"pixel_values": (1, 3, 32, 32)}),
        ("CLIP", {"input_ids": (1, 16), "pixel_values": (1, 3, 32, 32), "attention_mask": (1, 16)}),
    ],
)
def test_inputs_suit_the_task(name: str, inputs: dict[str, tuple[int, ...]]) -> None:
    (row,) = (row for row in ARCHITECTURES if row.name == name)
    found = resolve(row.build(), None, None)
    assert {key: value.shape for key, value in found.inputs.items()} == inputs
    assert all(0 in found.dynamic[key] for key in inputs)
    tensors = [torch.from_numpy(found.inputs[key]) for key in found.model.input_names]
    with torch.no_grad():
        assert all(isinstance(value, torch.Tensor) for value in found.model(*tensors).values())


def test_positions_bound_the_sequence() -> None:
    """RoBERTa's positions begin behind the padding index: two less than its table has."""
    (row,) = (row for row in ARCHITECTURES if row.name == "RoBERTa")
    dynamic = resolve(row.build(), None, None).dynamic
    assert dynamic["input_ids"][1] == Dim("sequence", 1, 16, 62)


def test_caller_gives_inputs_and_task(folder: Path) -> None:
    ids = torch.tensor([[3, 4, 5]])
    found = resolve(folder, {"input_ids": ids}, None)
    assert found.model.input_names == ("input_ids",)
    assert found.dynamic is None
    config = transformers.BertConfig(**SIZES, num_labels=3)
    classifier = resolve(config, None, None, task="text-classification")
    assert type(classifier.model.model).__name__ == "BertForSequenceClassification"
    assert classifier.model(ids, torch.ones_like(ids))["logits"].shape == (1, 3)


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickled(folder: Path) -> None:
    _no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _config(**changes: Any) -> EDIT:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def _other_head(folder: Path) -> None:
    _config(architectures=["BertForQuestionAnswering"])(folder)


BAD: dict[str, tuple[EDIT, str, str]] = {
    "no weights": (_no_weights, "holds no weights", "save_pretrained"),
    "pickle": (_pickled, "reading a pickle can run any code", "use_safetensors=False"),
    "cut off": (_cut, "cannot be loaded", "copy the folder again"),
    "no config": (lambda f: (f / "config.json").unlink(), "not a Hugging Face model", "save_p"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "is not JSON", ""),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "is not a JSON object", ""),
    "unknown type": (_config(model_type="unheard_of"), "not one of transformers' own", "upgrade"),
    "no type": (_config(model_type=None), "not one of transformers' own", "upgrade"),
    "remote code": (
        _config(model_type="mine", auto_map={"AutoModel": "code.Mine"}),
        "code of a folder is never run",
        "pass the nn.Module",
    ),
    "quantized": (_config(quantization_config={"bits": 4}), "quantized already", "float"),
    "other sizes": (_config(hidden_size=32), "The weights in", "write it with"),
    "wrong sizes": (_config(hidden_size="many"), "makes no configuration", ""),
    "other head": (_other_head, "does not hold the weights of BertForQuestionAnswering", "task"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "what", "fix"), BAD.values(), ids=BAD)
def test_unusable_folder_is_refused(
    edit: EDIT, what: str, fix: str, folder: Path, tmp_path: Path
) -> None:
    edit(folder)
    with pytest.raises(sdk.InputError) as caught:
        sdk.compile(folder, target="torch", output=tmp_path / "m.edge", threads=1)
    assert what in caught.value.what
    assert fix in (caught.value.fix or "")
    assert [file.name for file in tmp_path.iterdir()] == ["bert"]


def test_code_of_the_folder_does_not_run(folder: Path, tmp_path: Path) -> None:
    """Also where the type is known, so that the folder loads."""
    _config(auto_map={"AutoModel": "code.Mine", "AutoConfig": "code.Mine"})(folder)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    resolve(folder, None, None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda f: resolve(f, None, None, task="win-at-chess"), "task 'win-at-chess' is not known"),
        (lambda f: resolve(f, None, None, task="depth-estimation"), "no model for the task"),
        (lambda f: resolve(bert(), None, None, task="fill-mask"), "has its task already"),
        (lambda f: resolve(torch.nn.ReLU(), None, None, task="fill-mask"), "only for Hugging Face"),
        (lambda f: resolve(f, {"pixels": torch.ones(1)}, None), "has no input 'pixels'"),
    ],
)
def test_wrong_option_is_named(call: Callable[[Path], Any], what: str, folder: Path) -> None:
    with pytest.raises(sdk.InputError, match=what):
        call(folder)


PLAIN = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255,
         "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 3}  # fmt: skip
SQUEEZE = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
CROP = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True,
        "size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}  # fmt: skip


@pytest.fixture
def vision(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """A folder with a picture model and the given preprocessor."""

    def make(settings: dict[str, Any]) -> Path:
        config = transformers.ViTConfig(
            image_size=32, patch_size=16, hidden_size=16, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=32, num_labels=3,
        )  # fmt: skip
        transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
        (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(settings))
        return tmp_path / "vit"

    return make


@pytest.mark.parametrize("settings", [PLAIN | SQUEEZE, PLAIN | CROP], ids=["squeeze", "crop"])
def test_plain_image_processor_is_declared(
    settings: dict[str, Any], vision: Callable[[dict[str, Any]], Path]
) -> None:
    folder = vision(settings)
    processor = resolve(folder, None, None).processor
    assert processor is not None
    assert processor.pre is not None
    assert processor.post is not None
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
    theirs = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    want = theirs(picture, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(processor.pre([picture]), want, atol=1e-5)
    assert processor.post.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (PLAIN | SQUEEZE | {"do_pad": True}, "do_pad"),
        (PLAIN | SQUEEZE | {"size": {"shortest_edge": 40}}, "depends on the picture"),
        (PLAIN | SQUEEZE | {"do_rescale": False}, "does not resize or rescale"),
        (PLAIN | SQUEEZE | {"size": {"height": 48, "width": 48}}, "other pictures"),
        ({}, "has no preprocessor_config.json"),
    ],
)
def test_other_image_processor_is_none_with_the_reason(
    settings: dict[str, Any], reason: str, vision: Callable[[dict[str, Any]], Path]
) -> None:
    found = resolve(vision(settings), None, None)
    assert found.processor is None
    assert reason in found.provenance["processor"]
