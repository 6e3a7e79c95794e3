"""S2D (arXiv:2407.01955): one draft that stops at the first layer that is sure enough.

The draft's layers are cut into segments that each end in an exit. Tokens that stop early leave the
caches of the deeper segments behind; the hidden states at their exits are kept and replayed there,
all at once, when a later token goes deeper. So each cache is what a full pass would have made it.
One draft, trained at all its exits, serves any target of its vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdk.errors import InputError
from sdk.runtimes.generation.contracts import IID, ROOT, FeatureSession, Logits, Step
from sdk.runtimes.generation.in_place import as_feature_session
from sdk.runtimes.generation.model_drafter import ModelDrafter
from sdk.runtimes.generation.transforms import softmax
from sdk.runtimes.session import Session

THRESHOLD = 0.5
"""The paper's, for each exit but the last."""


class SortedDrafter(ModelDrafter):
    """Drafts with segments, compiled one after the other with `sdk.compile(..., layers=...)`.

    `thresholds` holds, for each segment but the last, how probable the most probable token must be
    there for the pass to end; of a tree the surest leaf decides, as in the paper. 0 never goes
    deeper, 1 always does.
    """

    def __init__(
        self,
        segments: Sequence[Session | FeatureSession],
        *,
        thresholds: Sequence[float] | None = None,
        sampling: str = IID,
        branching_factor: int = 1,
        tree_depth: int = 4,
        confidence_threshold: float = 0.0,
    ) -> None:
        self.exits = SortedSession([as_feature_session(one) for one in segments], thresholds)
        super().__init__(
            self.exits,
            sampling=sampling,
            branching_factor=branching_factor,
            tree_depth=tree_depth,
            confidence_threshold=confidence_threshold,
        )


class SortedSession:
    """A `DecoderSession` of segments; `used[i]` counts the passes that ended at exit i."""

    def __init__(
        self, segments: Sequence[FeatureSession], thresholds: Sequence[float] | None = None
    ) -> None:
        _check(segments)
        self._segments = list(segments)
        limits = [THRESHOLD] * (len(segments) - 1) if thresholds is None else list(thresholds)
        if len(limits) != len(segments) - 1 or not all(0 <= limit <= 1 for limit in limits):
            raise InputError(
                "The thresholds do not fit the exits.",
                expected=f"{len(segments) - 1} numbers from 0 to 1",
                got=limits,
            )
        self._limits = limits
        self.used = [0] * len(segments)
        self.capacity = min(segment.capacity for segment in segments)
        self.vocabulary = segments[0].vocabulary
        self._fed = 0

    @property
    def length(self) -> int:
        """Of the first segment: the others may lag behind."""
        return self._segments[0].length

    def extend(self, tokens: Sequence[int]) -> None:
        """Through the first segment alone; the others read it when they are asked."""
        self._segments[0].extend(tokens)

    def forward(self, tokens: Sequence[int], parents: Sequence[int] | None = None) -> Step:
        """Logits of the first exit that is sure of what follows the surest leaf."""
        leaves = _leaves(len(tokens), parents)
        step = self._segments[0].forward(tokens, parents)
        self._fed = 1
        for index, limit in enumerate(self._limits):
            if _surest(step, leaves) > limit:
                break
            self._replay(index + 1)
            deeper = self._segments[index + 1]
            step = deeper.forward(tokens, parents, features=step.features)
            self._fed += 1
        self.used[self._fed - 1] += 1
        return step

    def commit(self, path: Sequence[int]) -> None:
        """In the segments that the last pass went through."""
        for segment in self._segments[: self._fed]:
            segment.commit(path)

    def rollback(self, length: int) -> None:
        """In the segments that are that far."""
        for segment in self._segments:
            segment.rollback(min(length, segment.length))

    def fork(self) -> SortedSession:
        """Of all segments."""
        return SortedSession([segment.fork() for segment in self._segments], self._limits)

    def _replay(self, index: int) -> None:
        """Bring a segment up to the committed tokens of the one before."""
        before, segment = self._segments[index - 1], self._segments[index]
        missing = before.length - segment.length
        if missing:
            features = before.features(segment.length, before.length)
            segment.extend([0] * missing, features=features)


def _leaves(count: int, parents: Sequence[int] | None) -> list[int]:
    """Tokens that none follows."""
    if parents is None:
        return [count - 1]
    return sorted(set(range(count)) - {parent for parent in parents if parent != ROOT})


def _surest(step: Step, leaves: Sequence[int]) -> float:
    """The largest probability of any token behind a leaf."""
    return max(_most(step.logits[leaf]) for leaf in leaves)


def _most(logits: Logits) -> float:
    scores: Any = logits.astype("float64")
    return float(softmax(scores).max())


def _check(segments: Sequence[FeatureSession]) -> None:
    """InputError unless each goes on from what the one before gives."""
    given = 0
    for segment in segments:
        if segment.feature_width != given:
            raise InputError(
                "The segments do not follow each other.",
                expected=f"a segment that takes features {given} wide"
                if given
                else "a first segment that takes tokens",
                got=f"{segment.feature_width} wide",
                fix="compile layers (0, a), (a, b), (b, c) of one model, and pass all of them",
            )
        given = segment.given_width
    if not segments:
        raise InputError("There are no segments.", expected="one or more", got="none")
