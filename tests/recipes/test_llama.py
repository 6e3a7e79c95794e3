"""The language model of the recipes: transformers computes the same with the same weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from coverage.architectures import liven

from sdk.errors import InputError
from sdk.recipes.data.tokens import new_tokenizer
from sdk.recipes.models.huggingface import Saved, load_folder, save_folder
from sdk.recipes.models.llama import Llama, LlamaSize, stacked

SIZE = LlamaSize(
    vocabulary=300, width=32, layers=2, heads=4, kv_heads=2, hidden=48, context=64, tied=False
)
TOKENS = torch.arange(40).view(2, 20) * 7 % 300


def lively(size: LlamaSize) -> Llama:
    torch.manual_seed(3)
    model = Llama(size)
    liven(model)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return new_tokenizer(["def f(x):\n    return x\n"] * 3, 300).to_str()


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_gives_the_same_logits(tied: bool, tokenizer: str, tmp_path: Path) -> None:
    model = lively(replace(SIZE, tied=tied, theta=500.0, eps=1e-4))
    folder = save_folder(Saved(model, tokenizer), tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(theirs, transformers.LlamaForCausalLM)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), theirs(TOKENS).logits, rtol=1e-4, atol=1e-4)
    read = transformers.AutoTokenizer.from_pretrained(folder)
    assert read.decode(read("def f(x): é").input_ids) == "def f(x): é"
    assert read.eos_token_id == theirs.generation_config.eos_token_id == 0


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_is_loaded(tied: bool, tokenizer: str, tmp_path: Path) -> None:
    model = lively(replace(SIZE, tied=tied))
    again = load_folder(save_folder(Saved(model, tokenizer), tmp_path / "hf"))
    assert again.tokenizer == tokenizer
    assert again.model.size == model.size
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])
    save_folder(Saved(again.model, tokenizer), tmp_path / "hf", dtype=torch.float16)
    half = load_folder(tmp_path / "hf").model
    torch.testing.assert_close(half(TOKENS), model(TOKENS), rtol=0.05, atol=0.05)


def test_a_folder_of_transformers_is_loaded(tokenizer: str, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=1, intermediate_size=48, max_position_embeddings=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(1)
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    ours = load_folder(tmp_path).model
    with torch.no_grad():
        torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"head_dim": 16}, "head_dim"),
        ({"model_type": "mistral"}, "model_type"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "llama3"),
        ({"hidden_size": 64, "head_dim": 16}, "size mismatch"),
    ],
)
def test_other_models_are_refused(
    change: dict[str, object], told: str, tokenizer: str, tmp_path: Path
) -> None:
    folder = save_folder(Saved(Llama(SIZE), tokenizer), tmp_path / "hf")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=told):
        load_folder(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder of a Llama model"):
        load_folder(tmp_path)


@pytest.mark.parametrize("sizes", [{"heads": 3}, {"kv_heads": 3}, {"width": 36, "heads": 4}])
def test_sizes_that_do_not_fit_together_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="do not fit together"):
        replace(SIZE, **sizes)


def test_layers_are_repeated_in_order() -> None:
    model = lively(SIZE)
    grown = stacked(model, 5)
    assert grown.size == replace(SIZE, layers=5)
    for index, layer in enumerate(grown.model.layers):
        for name, weight in layer.state_dict().items():
            assert torch.equal(weight, model.model.layers[index % 2].state_dict()[name])
    assert torch.equal(grown.lm_head.weight, model.lm_head.weight)
    assert torch.equal(stacked(model, 2)(TOKENS), model(TOKENS))
