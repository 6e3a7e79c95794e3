"""The JSON Schema of `manifest.json`, made from the dataclasses that read and write it.

`python -m sdk.manifest_schema > sdk/manifest.schema.json` renews the published file.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from sdk.manifest import FORMAT_VERSION, Manifest
from sdk.structure import MAX_ITEMS

Schema = dict[str, Any]
# A float that JSON lacks (infinity, NaN) is written as null.
PLAIN: dict[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": ["number", "null"]},
    str: {"type": "string"},
    types.NoneType: {"type": "null"},
}


def schema() -> Schema:
    """The schema (JSON Schema 2020-12) of a manifest of this format version."""
    definitions: dict[str, Schema] = {}
    root = _object(Manifest, definitions)
    root["properties"]["format_version"] = {"const": FORMAT_VERSION}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:edge-sdk:manifest:{FORMAT_VERSION}",
        "title": "Manifest of an edge-sdk artifact",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def dumps() -> str:
    """The schema as JSON text."""
    return json.dumps(schema(), indent=2) + "\n"


def _schema(kind: Any, definitions: dict[str, Schema]) -> Schema:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_schema(option, definitions) for option in arguments]}
    if origin is tuple:
        items = _schema(arguments[0], definitions)
        return {"type": "array", "items": items, "maxItems": MAX_ITEMS}
    if origin is dict:
        values = _schema(arguments[1], definitions)
        return {"type": "object", "additionalProperties": values, "maxProperties": MAX_ITEMS}
    if is_dataclass(kind):
        return _reference(typing.cast(type, kind), definitions)
    return dict(PLAIN[kind])


def _reference(cls: type, definitions: dict[str, Schema]) -> Schema:
    if cls.__name__ not in definitions:
        definitions[cls.__name__] = _object(cls, definitions)
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _object(cls: Any, definitions: dict[str, Schema]) -> Schema:
    hints = typing.get_type_hints(cls)
    return {
        "description": inspect.getdoc(cls),
        "type": "object",
        "properties": {f.name: _schema(hints[f.name], definitions) for f in fields(cls)},
        "required": [f.name for f in fields(cls) if _is_required(f)],
        "additionalProperties": False,
    }


def _is_required(entry: Field[Any]) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


if __name__ == "__main__":
    print(dumps(), end="")
