"""JSON by a model for 200 schemas: valid, and the same with and without speculation.

    python tests/bench/schemas.py --data FOLDER --target FOLDER [--draft FOLDER] [--schemas 200]

The schemas are those of JSONSchemaBench in FOLDER, every n-th of those that compile, as many as it
takes for 200 outputs that end; those that do not are counted. A small model does not stop by
itself, so each schema is made finite first (`--as-given` leaves it): strings and lists get a
largest length where they have none, numbers become whole ones in bounds, objects get no properties
that are not named. That only narrows it: outputs are judged by `jsonschema` with the schema as it
was given. Greedy; prompts begin with the schema itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).parent / "speculation"))
import pair

import sdk
from sdk.errors import EdgeError
from sdk.model import Model
from sdk.runtimes.generation.drafters.fused import FusedDrafter
from sdk.runtimes.generation.drafters.prompt_lookup import PromptLookupDrafter
from sdk.runtimes.generation.model_drafter import ModelDrafter

FILE = Path("json_schema_bench") / "schemas.parquet"
TEXT: dict[str, Any] = {"type": "string", "maxLength": 24}
APPLIED = ("items", "additionalItems", "then", "else")
NAMED = ("properties", "patternProperties", "definitions", "$defs")
LISTED = ("allOf", "anyOf", "oneOf", "prefixItems")


@dataclass(frozen=True)
class Made:
    """One output, and how it was made."""

    tokens: tuple[int, ...]
    text: str
    finished: bool
    passes: int
    milliseconds: float


def finite(schema: Any) -> Any:
    """A schema that allows no more than `schema`, and nothing endless but by recursion."""
    if schema is True or schema == {}:
        return TEXT
    if not isinstance(schema, dict):
        return schema
    made = {name: _within(name, value) for name, value in schema.items()}
    if {"enum", "const", "$ref"} & set(made):
        return made
    kinds = made.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        BOUNDS.get(kind, lambda _: None)(made)
    return made


def _within(name: str, value: Any) -> Any:
    """A keyword's value with the schemas in it made finite."""
    if name in NAMED and isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if name in APPLIED or name in LISTED:
        return [finite(one) for one in value] if isinstance(value, list) else finite(value)
    return value


def _whole(schema: dict[str, Any]) -> None:
    if not {"minimum", "exclusiveMinimum"} & set(schema):
        schema["minimum"] = min(0, schema.get("maximum", 0))
    if not {"maximum", "exclusiveMaximum"} & set(schema):
        schema["maximum"] = max(9999, schema.get("minimum", 0))


def _number(schema: dict[str, Any]) -> None:
    kinds = schema["type"]
    others = [] if isinstance(kinds, str) else [k for k in kinds if k not in ("number", "integer")]
    schema["type"] = [*others, "integer"]
    _whole(schema)


def _text(schema: dict[str, Any]) -> None:
    if not {"pattern", "format"} & set(schema):
        schema.setdefault("maxLength", max(24, schema.get("minLength", 0)))


def _list(schema: dict[str, Any]) -> None:
    schema.setdefault("maxItems", max(3, schema.get("minItems", 0)))
    if "prefixItems" not in schema:
        schema.setdefault("items", TEXT)


def _object(schema: dict[str, Any]) -> None:
    schema.setdefault("additionalProperties", False)


BOUNDS: dict[str, Callable[[dict[str, Any]], None]] = {
    "number": _number, "integer": _whole, "string": _text, "array": _list, "object": _object,
}  # fmt: skip


def chosen(data: Path, count: int, model: Model, *, as_given: bool) -> Iterator[tuple[Any, Any]]:
    """Schemas as they were given and as they are enforced, from all over the file."""
    rows = parquet.read_table(data / FILE, columns=["case"]).to_pylist()
    step = max(1, len(rows) // (2 * count))
    for start in range(step):
        for row in rows[start::step]:
            schema = json.loads(row["case"])
            narrow = schema if as_given else finite(schema)
            try:
                model.generate([1], max_new_tokens=0, constraint=sdk.JsonSchema(narrow))
            except EdgeError:
                continue
            yield schema, narrow


def make(model: Model, schema: Any, narrow: Any, drafter: Any, options: Any) -> Made:
    """One output."""
    encode = model.language.tokenizer.encode  # type: ignore[union-attr]
    prompt = encode(json.dumps(schema))[: options.context] + encode("\n\n")
    start = time.perf_counter()
    result = model.generate(
        prompt,
        max_new_tokens=options.tokens,
        constraint=sdk.JsonSchema(narrow, whitespace=False),
        drafter=drafter,
        num_draft_tokens=None if drafter is None else options.budget,
    )
    spent = 1e3 * (time.perf_counter() - start)
    finished = result.finish_reason == "eos"
    passes = result.stats.target_forward_passes
    return Made(result.tokens, result.text, finished, passes, spent)


def drafters(model: Model, options: Any) -> dict[str, Any]:
    """Those to compare with plain decoding."""
    found: dict[str, Any] = {"prompt_lookup": PromptLookupDrafter(), "trigram": "trigram"}
    if options.draft is not None:
        session = pair.loaded(options.draft, options).language.cached.session
        draft = ModelDrafter(session)
        found |= {"model": draft, "fused": FusedDrafter(draft, PromptLookupDrafter())}
    return found


def run(model: Model, options: Any) -> dict[str, Any]:
    """All schemas, plain and drafted."""
    known = drafters(model, options)
    ways = {"plain": None, **{name: known[name] for name in options.drafters or known}}
    made: dict[str, list[Made]] = {name: [] for name in ways}
    valid = differ = finished = 0
    for schema, narrow in chosen(options.data, options.schemas, model, as_given=options.as_given):
        for name, drafter in ways.items():
            made[name].append(make(model, schema, narrow, drafter, options))
            differ += made[name][-1].tokens != made["plain"][-1].tokens
        if made["plain"][-1].finished:
            finished += 1
            valid += _valid(made["plain"][-1].text, schema)
        print(f"{finished}/{options.schemas}", end="\r", file=sys.stderr)
        if finished == options.schemas:
            break
    plain = made["plain"]
    return {
        "schemas": len(plain),
        "finished": finished,
        "valid": valid,
        "other tokens than plain": differ,
        "tokens": sum(len(one.tokens) for one in plain),
        **{f"tokens a pass, {name}": _rate(some) for name, some in made.items()},
        **{f"ms a schema, {name}": sum(one.milliseconds for one in some) / len(some)
           for name, some in made.items()},
    }  # fmt: skip


def _rate(made: list[Made]) -> float:
    return sum(len(one.tokens) for one in made) / sum(one.passes for one in made)


def _valid(text: str, schema: Any) -> bool:
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    value = json.loads(text)
    errors = list(kind(schema).iter_errors(value))
    if errors:
        print(f"not valid: {text[:200]}\n  {errors[0].message[:200]}", file=sys.stderr)
    return not errors


def main() -> int:
    """Print the figures; 1 where fewer are valid than asked for, or speculation changed one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--draft", type=Path, help="Hugging Face folder of the same tokenizer")
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--context", type=int, default=128, help="most tokens of a schema to read")
    parser.add_argument("--budget", type=int, default=6)
    parser.add_argument("--drafters", nargs="+", help="some of those that there are")
    parser.add_argument("--as-given", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/edge-speculation"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = run(pair.loaded(options.target, options), options)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for name, value in found.items():
            print(f"{name:32} {value:.2f}" if isinstance(value, float) else f"{name:32} {value}")
    wrong = found["valid"] < options.schemas or found["other tokens than plain"] > 0
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
