"""EAGLE (arXiv:2401.15077), FSPAD (arXiv:2408.15562): guesses from the target's hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sdk.errors import InputError
from sdk.runtimes.generation.contracts import (
    DETERMINISTIC,
    NOTHING,
    ROOT,
    DraftTree,
    FeatureSession,
    Logits,
    Request,
)
from sdk.runtimes.generation.in_place import as_feature_session
from sdk.runtimes.generation.kept_features import Features
from sdk.runtimes.generation.model_drafter import Growing, ModelDrafter
from sdk.runtimes.session import Session


class FeatureDrafter(ModelDrafter):
    """Drafts with a head that was trained for this target, compiled by `compile_head`.

    Pair t is token t + 1 with the target's feature t; it predicts token t + 2, and a feature that
    stands in for the target's behind a guess. What was fed with such a stand-in is fed again once
    the target's own feature is there. The target must be compiled with `features=True`.

    The tree is EAGLE-2's (arXiv:2406.16858): the `branching_factor` best nodes of each level get as
    many children, and of all levels the nodes of the best scores are kept.
    """

    ahead = False

    def __init__(
        self,
        head: Session | FeatureSession,
        *,
        sampling: str = DETERMINISTIC,
        branching_factor: int = 1,
        tree_depth: int = 4,
        confidence_threshold: float = 0.0,
    ) -> None:
        self._head = session = as_feature_session(head)
        if not session.feature_width:
            raise InputError(
                "This is no feature head.",
                expected="a step that is fed features",
                got="one that is not",
                fix="compile it with sdk.recipes.drafts.feature_head.compile_head",
            )
        super().__init__(
            session,
            sampling=sampling,
            branching_factor=branching_factor,
            tree_depth=tree_depth,
            confidence_threshold=confidence_threshold,
        )
        self._first: int | None = None
        self._true = 0

    def begin(self, request: Request) -> None:
        """The cache is only kept for the same beginning of the prompt."""
        super().begin(request)
        if request.features is None:
            raise _without_features("a session without them")
        width = request.features(0, 0).shape[1]
        if width != self._head.feature_width:
            raise _without_features(f"{width} wide")
        if request.prompt[0] != self._first:
            self._first, self._true = request.prompt[0], 0

    def propose(self, context: Sequence[int], budget: int) -> DraftTree:
        """As a model does; nothing behind a single token, of which there is no pair yet."""
        return super().propose(context, budget) if len(context) > 1 else NOTHING

    def _catch_up(self, context: Sequence[int]) -> Logits:
        """Feed the pairs that the cache lacks, with the target's own features."""
        self.cached.rollback(self._true)
        missing = self.cached.align(context[1:])
        given: Any = self._request.features
        features = given(len(context) - 1 - len(missing), len(context) - 1)
        self.cached.extend(missing[:-1], features=features[:-1])
        self._true, self._behind = len(context) - 1, {ROOT: features[-1]}
        return self._feed(missing[-1:])

    def _feed(self, tokens: Sequence[int]) -> Logits:
        """A chain's next token, behind the feature of the one before."""
        self.forward_passes += 1
        step = self.cached.feed(tokens, features=self._behind[ROOT][None])
        self._behind = {ROOT: np.array(step.features[0])}
        return step.logits[0]

    def _look(self, growing: Growing, level: Sequence[int]) -> dict[int, Logits]:
        """Each node is fed with what stands in for its parent's feature."""
        self.forward_passes += 1
        fed: Features = np.stack([self._behind[parent] for parent in growing.parents])
        step = self._head.forward(growing.tokens, growing.parents, features=fed)
        self._behind |= {node: np.array(step.features[node]) for node in level}
        return {node: step.logits[node] for node in level}


def _without_features(got: str) -> InputError:
    return InputError(
        "The target does not give the features that this head goes on from.",
        expected="hidden states of the head's own width",
        got=got,
        fix="compile the target that the head was trained for with features=True",
    )
