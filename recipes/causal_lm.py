"""A language model and a draft for it, from any folder of text.

A byte-level tokenizer, a target of the Llama family and a much smaller draft of the same tokenizer
are trained on the texts; the draft first on the texts alone, then on the target's law of the next
token as well (Zhou et al., "DistillSpec", arXiv 2310.08461). Some groups of texts (packages, the
modules of a library) are held out, and all figures are of those. Both models are also Hugging Face
folders, so that other programs run the very same weights.

Some of the rows that are learnt from are exercises in editing, see `data/exercises.py`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

import sdk
from sdk.artifact import Artifact, check_output
from sdk.errors import InputError
from sdk.extras import require
from sdk.progress import Report, terminal
from sdk.recipes import shipped
from sdk.recipes.base import Recipe, Student
from sdk.recipes.data import text, tokens
from sdk.recipes.data.corpus import Corpus
from sdk.recipes.data.prompts import Asked, Lengths, read
from sdk.recipes.data.tokens import Rows
from sdk.recipes.models.huggingface import Saved, save_folder
from sdk.recipes.models.llama import Llama, LlamaSize, stacked
from sdk.recipes.objectives.language import distilled, next_token
from sdk.recipes.training.export import copy
from sdk.recipes.training.language_card import write_card
from sdk.recipes.training.language_export import (
    Compiled,
    compile_language,
    fastest,
    speculation,
    usable,
)
from sdk.recipes.training.loop import Objective, Schedule, train
from sdk.recipes.training.perplexity import Bits, bits
from sdk.recipes.workspace import Workspace
from sdk.target import Target

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHALLOW, TARGET, DRAFT, DISTILLED = "target-shallow", "target", "draft", "draft-distilled"
SHIPPED = "shipped"
FOLDERS = {
    SHALLOW: "target_hf",
    TARGET: "target_hf",
    DRAFT: "draft-plain_hf",
    DISTILLED: "draft_hf",
}
LOOK_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class CausalLM(Recipe):
    """A language model of code and a draft for it (draft distilled as in arXiv 2310.08461)."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {},
        "full": {
            "data": "packages", "vocabulary": 4096, "context": 512, "group_bytes": 16_000_000,
            "width": 384, "layers": 6, "heads": 6, "kv_heads": 2, "hidden": 1024, "tied": False,
            "draft_width": 128, "draft_layers": 2, "draft_heads": 4, "draft_kv_heads": 2,
            "draft_hidden": 512, "steps": 20_000, "minutes": 38.0, "lr": 1.2e-3,
            "shallow_layers": 2, "shallow_steps": 20_000, "shallow_minutes": 26.0,
            "draft_steps": 20_000, "draft_minutes": 10.5, "distil_steps": 20_000,
            "distil_minutes": 10.0, "warmup": 0.004, "ema": 0.99, "checkpoint_every": 120,
            "batch": 2,
            "test_rows": 128, "prompts": 16,
        },
        "shipped": {"weights": "shipped"},
    }  # fmt: skip

    CLAIM: ClassVar[str] = (
        "DistillSpec's abstract claims that a distilled draft makes speculative decoding 10 to 45 "
        "% faster than one that is not, for other, larger models: the figures do not compare."
    )

    weights: str = ""
    """`shipped`: nothing is trained, the models are those that come with the package."""
    data: str = text.STDLIB
    """`stdlib`, `packages` (installed, permissively licensed) or a folder."""
    pattern: str = "*.py"
    """Which files of a folder are read."""
    most_bytes: int = 0
    """How much text is read at most; 0: all."""
    group_bytes: int = 0
    """How much text of one package, or one entry of the folder, is read at most; 0: all."""
    hold_out_every: int = 10
    """One group in so many is held out."""
    tokenizer_bytes: int = 16_000_000
    """How much text the tokenizer is trained on at most."""
    exercises: int = 120
    """How many rows in a thousand are exercises in editing."""

    vocabulary: int = 2048
    """Tokens of the byte-level tokenizer."""
    context: int = 256
    """Tokens of a row, and of the longest text that the models read."""
    width: int = 160
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    """Heads of keys and values, each for some of `heads`."""
    hidden: int = 432
    """Width of the feed-forward part."""
    tied: bool = True
    """Whether the output layer of the target shares the embedding; that of the draft does."""
    shallow_layers: int = 0
    """The target is trained with so many layers first, which are then repeated: see `stacked`."""
    draft_width: int = 64
    """As above, of the draft."""
    draft_layers: int = 1
    draft_heads: int = 2
    draft_kv_heads: int = 1
    draft_hidden: int = 192

    batch: int = 4
    """Rows of a step."""
    lr: float = 3e-3
    draft_lr: float = 4e-3
    distil_lr: float = 2e-3
    distil_share: float = 0.8
    """Weight of the target's law in the draft's last stage; the rest is the texts'."""
    steps: int = 200
    """Of the target; with a time limit, the most that there can be."""
    shallow_steps: int = 0
    """Of the stage with `shallow_layers`, where there is one."""
    draft_steps: int = 100
    distil_steps: int = 100
    minutes: float = 0.0
    """Time limit of the target's training, of which the learning rate is a function; 0: none."""
    shallow_minutes: float = 0.0
    draft_minutes: float = 0.0
    distil_minutes: float = 0.0
    warmup: float = 0.05
    decay: float = 0.4
    """The learning rate falls over this last share of a stage."""
    weight_decay: float = 0.1
    ema: float = 0.98
    """Decay of the averaged weights, which are those that count, per step."""
    checkpoint_every: int = 100
    test_rows: int = 64
    """How many held-out rows the figures are of."""
    prompts: int = 8
    """How many held-out prompts of each kind the speeds are of."""
    seed: int = 0

    engines: tuple[str, ...] = ()
    """Engines to compile for; empty: all that are present and run language models."""
    precision: str = "fp32"
    """Of the target; drafts stay fp32."""

    @property
    def size(self) -> LlamaSize:
        """Of the target."""
        return self._size("")

    @property
    def draft_size(self) -> LlamaSize:
        """Of the draft."""
        return self._size("draft_")

    def _size(self, prefix: str) -> LlamaSize:
        names = ("width", "layers", "heads", "kv_heads", "hidden")
        return LlamaSize(
            vocabulary=self.vocabulary,
            context=self.context,
            tied=self.tied or bool(prefix),
            **{name: getattr(self, prefix + name) for name in names},
        )

    def schedule(self, stage: str) -> Schedule:
        """Of one of the three stages."""
        steps, minutes, lr = {
            SHALLOW: (self.shallow_steps, self.shallow_minutes, self.lr),
            TARGET: (self.steps, self.minutes, self.lr),
            DRAFT: (self.draft_steps, self.draft_minutes, self.draft_lr),
            DISTILLED: (self.distil_steps, self.distil_minutes, self.distil_lr),
        }[stage]
        return Schedule(
            steps=steps,
            minutes=minutes,
            lr=lr,
            batch=self.batch,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            clip_norm=1.0,
            ema=self.ema,
            checkpoint_every=self.checkpoint_every,
            optimizer="adamw",
            shape="flat",
            decay=self.decay,
        )

    def run(
        self,
        output: str | Path,
        *,
        resume: bool = True,
        overwrite: bool = False,
        progress: Report | None = None,
    ) -> Student:
        """Read the texts, train tokenizer, draft and target, distil the draft, compile, report."""
        output = Path(output)
        check_output(output, overwrite=overwrite)
        usable(self.engines)
        if self.weights not in ("", SHIPPED):
            raise InputError(
                f"There are no weights {self.weights!r}.", expected=f"nothing, or {SHIPPED!r}"
            )
        space = Workspace.open(output, self, resume=resume)
        if self.weights:
            shipped.take_out(space.folder)
        with terminal(progress) as report, space.clock() as seconds:
            run = _Run(self, space, report)
            target = run.models()
            compiled = run.compiled()
            figures = run.figures(compiled, seconds)
            best = compiled.artifacts[figures["best"]]
            artifact = copy(best, output, overwrite=overwrite)
            write_card(space.folder, self, figures, artifact)
        return Student(target, artifact, compiled.artifacts, figures, space.folder)


RECIPE = CausalLM


@dataclass
class _Run:
    """One run under way."""

    recipe: CausalLM
    space: Workspace
    progress: Report
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.corpus = Corpus(self.recipe, self.space, self.progress).make()
        library = require("tokenizers", purpose="A recipe for language models")
        self.tokenizer: Tokenizer = library.Tokenizer.from_file(
            str(self.space.folder / "tokenizer.json")
        )
        self.train_rows = Rows(self.space.folder / "train.npy")
        self.test_rows = Rows(self.space.folder / "test.npy")
        self.lengths = torch.from_numpy(tokens.token_bytes(self.tokenizer))

    def models(self) -> Llama:
        """Train all three; returns the target, and leaves their folders."""
        draft = self._trained(DRAFT, self.recipe.draft_size, next_token)
        target = self._trained(TARGET, self.recipe.size, next_token, self._grown())
        objective = distilled(target, self.recipe.distil_share)
        self._trained(DISTILLED, self.recipe.draft_size, objective, draft)
        return target

    def _grown(self) -> Llama | None:
        """The target to begin with, where a shallower one is trained first."""
        if not self.recipe.shallow_layers:
            return None
        size = replace(self.recipe.size, layers=self.recipe.shallow_layers)
        return stacked(self._trained(SHALLOW, size, next_token), self.recipe.layers)

    def compiled(self) -> Compiled:
        """Artifacts of the target for every engine."""
        return self._compiled(TARGET, self.recipe.engines, self.recipe.precision)

    def _compiled(self, stage: str, engines: Sequence[str], precision: str) -> Compiled:
        return compile_language(
            self.space.folder / FOLDERS[stage],
            self.space.folder / "artifacts" / stage,
            engines=engines,
            precision=precision,
            progress=self.progress,
        )

    def figures(self, compiled: Compiled, seconds: Callable[[], float]) -> dict[str, Any]:
        """Everything that the report and the model card say."""
        folder, count = self.space.folder / "prompts", Lengths(self.recipe.context).following
        asked = {
            name: read(folder / f"{name}.jsonl")[: self.recipe.prompts]
            for name in ("completions", "edits")
        }
        texts = [one.prompt for one in asked["completions"]]
        best, speeds = fastest(compiled.artifacts, texts, count)
        return {
            "corpus": self.corpus,
            "models": self.results,
            "best": best,
            "tokens_per_second": speeds,
            "refused": compiled.refused,
            "speculation": self._speculation(compiled.artifacts[best], asked, count),
            "builds": [
                {"target": target, "bytes": artifact.size}
                for target, artifact in compiled.artifacts.items()
            ],
            "seconds": round(seconds(), 1),
        }

    def _speculation(
        self, best: Artifact, asked: Mapping[str, list[Asked]], count: int
    ) -> list[dict[str, Any]]:
        """What the drafts are worth to the fastest artifact, on its own engine."""
        engine = (Target.parse(best.manifest.target).engine,)
        stages = {"draft, from texts alone": DRAFT, "draft, distilled": DISTILLED}
        with contextlib.ExitStack() as stack:
            drafts = {}
            for name, stage in stages.items():
                (artifact,) = self._compiled(stage, engine, "fp32").artifacts.values()
                drafts[name] = stack.enter_context(sdk.load(artifact.path))
            model = stack.enter_context(sdk.load(best.path))
            return speculation(model, drafts, asked, count, self.progress)

    def _trained(
        self, stage: str, size: LlamaSize, objective: Objective, start: Llama | None = None
    ) -> Llama:
        torch.manual_seed(self.recipe.seed)
        model = Llama(size)
        if start is not None:
            model.load_state_dict(start.state_dict())
        trained = train(
            model,
            self.train_rows,
            objective,
            self.recipe.schedule(stage),
            name=stage,
            folder=self.space.folder,
            seed=self.recipe.seed,
            progress=self.progress,
            evaluate=partial(self._look, stage),
        )
        assert isinstance(trained, Llama)
        self._save(stage, trained)
        self._describe(stage, trained)
        return trained

    def _describe(self, stage: str, model: Llama) -> None:
        """Size and figures of a trained model."""
        rows = self.recipe.test_rows
        found = self.space.once(f"{stage}-test", lambda: asdict(self._bits(model, rows)))
        schedule = self.space.once(f"{stage}-training", lambda: self._course(stage))
        count = sum(weight.numel() for weight in model.parameters())
        self.results[stage] = {"parameters": count, **found, **schedule}

    def _look(self, stage: str, model: nn.Module) -> dict[str, float]:
        """Figures at a checkpoint; the weights so far can be used by others already."""
        assert isinstance(model, Llama)
        model.eval()
        found = self._bits(model, LOOK_ROWS)
        self._save(stage, model)
        return {"test_loss": round(found.loss, 4), "bits_per_byte": round(found.per_byte, 4)}

    def _save(self, stage: str, model: Llama) -> None:
        saved = Saved(model, self.tokenizer.to_str())
        save_folder(saved, self.space.folder / FOLDERS[stage])

    def _bits(self, model: nn.Module, rows: int) -> Bits:
        return bits(model, self.test_rows, self.lengths, rows_used=min(rows, len(self.test_rows)))

    def _course(self, stage: str) -> dict[str, Any]:
        log = self.space.folder / f"{stage}.jsonl"
        last = json.loads(log.read_text().splitlines()[-1])
        return {"steps": last["step"], "training_seconds": last["seconds"]}
