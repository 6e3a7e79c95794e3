"""What the parts of generation hand to each other: drafts, verdicts, and the protocols of both.

Shapes: V is the vocabulary size, n the number of drafted nodes. Distributions are float64 rows of V
that sum to one, after every logits transform.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sdk.runtimes.generation import tree_shapes
from sdk.runtimes.generation.tree_shapes import ROOT as ROOT

if TYPE_CHECKING:
    from sdk.runtimes.generation.transforms import Transforms

Row = NDArray[np.float64]
Logits = NDArray[np.float32]
Mask = NDArray[np.bool_]

DETERMINISTIC, IID, WITHOUT_REPLACEMENT, GREEDY = SAMPLINGS = (
    "deterministic",
    "iid",
    "without_replacement",
    "greedy",
)


@dataclass(frozen=True, slots=True)
class DraftTree:
    """Guessed continuations of the last committed token, which is the root and not a node.

    Nodes are in topological order: `parents[i] < i`, or `ROOT`. Siblings stand in the order in
    which they were drawn. Tuples, because a tree has a handful of nodes.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    sampling: str = DETERMINISTIC
    """How siblings were drawn; one of `SAMPLINGS`."""
    probs: tuple[Row | None, ...] = field(default=(), compare=False)
    """For each node the distribution its *children* were drawn from; the root's comes first.

    Of length n + 1, or empty where the drafter has none; nobody needs them of deterministic drafts.
    """
    scores: tuple[float, ...] = ()
    """For each node how likely its drafter thinks it is accepted; empty where it has no idea."""

    @classmethod
    def chain(
        cls,
        tokens: Sequence[int],
        *,
        sampling: str = DETERMINISTIC,
        probs: Sequence[Row | None] = (),
        scores: Sequence[float] = (),
    ) -> DraftTree:
        """One guess after the other."""
        parents = tuple(range(ROOT, len(tokens) - 1))
        return cls(tuple(tokens), parents, sampling, tuple(probs), tuple(scores))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether each node is behind the one before."""
        return self.parents == tuple(range(ROOT, len(self.tokens) - 1))

    def children(self, node: int) -> Sequence[int]:
        """The nodes below `node` (`ROOT` for the first ones), in the order they were drawn."""
        return tree_shapes.children(self.parents)[node + 1]

    def proposal(self, node: int) -> Row | None:
        """The distribution that the children of `node` were drawn from, where there is one."""
        return self.probs[node + 1] if self.probs else None

    def depths(self) -> Sequence[int]:
        """Distance of each node from the root: 1 for the root's children."""
        return tree_shapes.depths(self.parents)


NOTHING = DraftTree()
"""No guess: one plain step."""


class Verdict(NamedTuple):
    """What a verifier decided on one draft."""

    path: tuple[int, ...]
    """Accepted nodes from the root down; may be empty."""
    token: int
    """The token after the path: a correction, or the bonus token below a leaf."""
    evaluated: int
    """How many nodes were looked at."""
    bonus: bool
    """Whether the path ended at a leaf, so that `token` corrects nothing."""


class TargetRows(Protocol):
    """The target's distributions at the root and at each node, worked out when asked for."""

    def row(self, node: int) -> Row:
        """p after `node` (`ROOT`: after the last committed token)."""
        ...

    def best(self, node: int) -> int:
        """The most probable token after `node`, without working out the row."""
        ...

    def likely(self, node: int) -> Row:
        """p after `node` as it was before temperature and truncation."""
        ...

    def logprob(self, node: int, token: int) -> float:
        """Of `token` after `node` under the model, before any transform."""
        ...


class Chance(Protocol):
    """All that is random in generation, by place and not by order.

    A place is an absolute token position and a lane; lanes of a position are independent. With the
    same seed the same place always decides alike, whatever was decided elsewhere.
    """

    def accept(self, probability: float, position: int, lane: int) -> bool:
        """True with `probability`, clipped to [0, 1]; never where it is 0."""
        ...

    def draw(self, row: Row, position: int, lane: int = 0) -> int:
        """A token with the law of `row`, which need not be normalised; never one of weight 0."""
        ...


class Verifier(Protocol):
    """Accepts a path of a draft so that the output has the target's law."""

    lossless: bool
    accepts: frozenset[str]
    """The kinds of sibling sampling that it is exact for."""

    def verify(self, tree: DraftTree, target: TargetRows, chance: Chance, position: int) -> Verdict:
        """Decide on `tree`; `position` is the absolute position of the root's children."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """What a drafter learns when a request starts."""

    prompt: Sequence[int]
    vocabulary: int
    transforms: Transforms
    """The target's own pipeline, for drafters that have logits."""
    chance: Chance
    ends: frozenset[int] = frozenset()
    """Tokens that end the output: nothing is worth drafting behind them."""
    features: Callable[[int, int], Any] | None = None
    """(start, stop) -> the target's hidden states [stop - start, F] of committed tokens."""
    begun: int = 0
    """How many tokens at the prompt's end are output already."""
    source: Sequence[int] = ()
    """What an encoder read, in the decoder's tokens."""


class Outcome(NamedTuple):
    """One round, as a drafter or a budget may learn from it."""

    tree: DraftTree
    verdict: Verdict
    committed: tuple[int, ...]
    """The tokens that the round added, the verdict's own last."""
    target: TargetRows
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    """The target's forward pass over the root and all nodes."""
    features: Any = None
    """Hidden states [n + 1, H] of the root and the nodes, where the target gives them."""
    other_ms: float = 0.0
    """What else the round took: to choose tokens, and to keep caches and states."""


class Drafter(Protocol):
    """Guesses what the target will say. It can be wrong; it cannot change the output."""

    sampling: str
    """How it draws siblings; verifiers are matched to it. Deterministic trees are always fine."""
    chain: bool
    """Whether it never branches."""

    @property
    def forward_passes(self) -> int:
        """Model evaluations since it was made; 0 for drafters without a model."""
        ...

    def begin(self, request: Request) -> None:
        """Start a request."""
        ...

    def propose(self, context: Sequence[int], budget: int) -> DraftTree:
        """At most `budget` nodes after `context`, prompt and output so far; may be empty.

        What it decides before a draw (how many siblings, whether to go deeper) must not depend on
        that draw, or the law of the output is lost.
        """
        ...

    def observe(self, outcome: Outcome) -> None:
        """See what became of the last draft."""
        ...


class BudgetPolicy(Protocol):
    """How many nodes the next draft may have."""

    predicted_speedup: float | None
    """Of the last choice over plain decoding, where the policy has an opinion."""

    def begin(self) -> None:
        """Start a request."""
        ...

    def next(self) -> int:
        """0 for a plain step."""
        ...

    def trim(self, tree: DraftTree) -> DraftTree:
        """The part of a draft that the target shall read.

        Only of deterministic trees may it be less than all: what is left of one that was drawn by
        chance would have another law.
        """
        ...

    def observe(self, outcome: Outcome) -> None:
        """Learn from a round."""
        ...


class Constraint(Protocol):
    """A language that the output must belong to. States are values: an old one stays usable."""

    def start(self) -> Any:
        """The state before the first output token."""
        ...

    def advance(self, state: Any, token: int) -> Any:
        """The state after a legal `token`."""
        ...

    def allowed(self, state: Any) -> Mask:
        """[V]: the tokens that may come next; those of end-of-sequence where it may end."""
        ...

    def permits(self, state: Any, token: int) -> bool:
        """`allowed(state)[token]`, where the others are not of interest."""
        ...

    def forced(self, state: Any) -> Sequence[int]:
        """Tokens of which each is the only legal one; empty where there is a choice."""
        ...


class LogitRows(Protocol):
    """Rows of logits, one per token fed; valid until the session's next call. An array is one."""

    def __getitem__(self, index: int, /) -> Logits: ...


class Step(NamedTuple):
    """What a forward pass gives."""

    logits: LogitRows
    features: Any = None
    """Hidden states [m, H], where the model gives them."""


class DecoderSession(Protocol):
    """A decoder with its cache. Only committed tokens count; what else is in the cache is noise."""

    capacity: int
    """Tokens that the cache holds, committed and fed together."""
    vocabulary: int

    @property
    def length(self) -> int:
        """Committed tokens."""
        ...

    def extend(self, tokens: Sequence[int]) -> None:
        """Feed known tokens and commit them; no logits are asked for."""
        ...

    def forward(self, tokens: Sequence[int], parents: Sequence[int] | None = None) -> Step:
        """Feed m tokens behind the committed ones and commit none.

        `parents[i] < i` is the fed token that token i follows, or `ROOT` for the last committed
        one; None is a chain. Token i attends to all committed tokens, its ancestors and itself, at
        position `length + depth`. What an earlier call fed and nobody committed is dropped.
        """
        ...

    def commit(self, path: Sequence[int]) -> None:
        """Keep these tokens of the last forward pass, in this order, and drop the rest."""
        ...

    def rollback(self, length: int) -> None:
        """Forget all but the first `length` committed tokens, and whatever is uncommitted."""
        ...

    def fork(self) -> DecoderSession:
        """A session of its own with the same committed tokens."""
        ...


class FeatureSession(DecoderSession, Protocol):
    """A decoder that goes on from another's hidden states, gives its own, or both."""

    feature_width: int
    """Of the features that are fed with each token; 0 where there are none."""
    given_width: int
    """Of the features that come out."""

    def extend(self, tokens: Sequence[int], *, features: Any = None) -> None:
        """As above; `features` is [m, F]."""
        ...

    def forward(
        self, tokens: Sequence[int], parents: Sequence[int] | None = None, *, features: Any = None
    ) -> Step:
        """As above; `features` is [m, F]."""
        ...

    def features(self, start: int, stop: int) -> Any:
        """[stop - start, F] of committed tokens."""
        ...

    def fork(self) -> FeatureSession:
        """As above."""
        ...
