"""The published schema is the one that the code reads by."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import jsonschema
import pytest

from sdk import manifest_schema
from sdk.errors import ArtifactError
from sdk.manifest import (
    FORMAT_VERSION,
    Candidate,
    Fidelity,
    FileEntry,
    Function,
    KernelUse,
    Manifest,
    loads,
)
from sdk.parity import OutputParity
from sdk.signature import Dim, Signature, TensorSpec
from sdk.timing import Latency

Document = dict[str, Any]
LATENCY = Latency(100, 10.0, 11.0, 12.0, 10.5, 0.1)
EXACT = OutputParity("y", 0.0, 0.0, 0.0, 1.0, ok=True)
SIGNATURE = Signature(
    (TensorSpec("x", "float32", (Dim("batch", 1, 1, 16), 3)),), (TensorSpec("y", "int64", ()),)
)
# Every class and every optional field of the format is used once.
MANIFEST = Manifest(
    format_version=FORMAT_VERSION,
    name="student",
    target="openvino:cpu:int8",
    requested="openvino:cpu:int8",
    functions={"main": Function(SIGNATURE, "model.onnx")},
    candidates=(
        Candidate("openvino:cpu:fp32", False, "slower", 10, (EXACT,)),
        Candidate(
            "openvino:cpu:int8",
            True,
            "faster",
            5,
            (EXACT,),
            Fidelity((EXACT,), "accuracy", 0.9, 0.89, 0.02),
            LATENCY,
            2.0,
            ("features.0",),
        ),
    ),
    check_batches=2,
    threads=1,
    tools={"torch": "2.13.0"},
    provenance={"source": "Model"},
    files={"model.onnx": FileEntry(5, "00")},
    eager=LATENCY,
    kernels=(KernelUse("edge::x", 1, "native"),),
    waivers=("slower",),
).sealed()


@pytest.fixture
def document() -> Document:
    return dict(json.loads(MANIFEST.dumps()))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    published = json.loads((files("sdk") / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(published)
    return jsonschema.Draft202012Validator(published)


def test_published_file_is_current() -> None:
    published = (files("sdk") / "manifest.schema.json").read_text()
    assert published == manifest_schema.dumps(), (
        "run: python -m sdk.manifest_schema > sdk/manifest.schema.json"
    )


def test_a_full_manifest_is_valid(
    document: Document, validator: jsonschema.Draft202012Validator
) -> None:
    validator.validate(document)
    assert loads(json.dumps(document).encode()) == MANIFEST


def _set(*path: str | int, to: Any) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return change


WRONG = {
    "a missing key": lambda document: document.pop("target"),
    "an unknown key": _set("extra", to=1),
    "another version": _set("format_version", to=2),
    "a version as text": _set("format_version", to="1"),
    "text for a number": _set("threads", to="1"),
    "a fraction for a count": _set("check_batches", to=1.5),
    "a boolean for a count": _set("threads", to=True),
    "null for text": _set("name", to=None),
    "an object for a list": _set("candidates", to={}),
    "a list for an object": _set("files", to=[]),
    "an unknown key deep inside": _set("candidates", 1, "fidelity", "extra", to=1),
    "a missing key deep inside": _set("candidates", 1, "latency", to={"runs": 3}),
    "text for a dim": _set("functions", "main", "signature", "inputs", 0, "shape", 0, to="batch"),
    "a number for a waiver": _set("waivers", to=[1]),
}


@pytest.mark.parametrize("what", WRONG)
def test_schema_and_reader_refuse_the_same(
    what: str, document: Document, validator: jsonschema.Draft202012Validator
) -> None:
    changed = copy.deepcopy(document)
    WRONG[what](changed)
    assert not validator.is_valid(changed)
    with pytest.raises(ArtifactError):
        loads(json.dumps(changed).encode())
