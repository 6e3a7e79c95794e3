"""Temperature 0: a drafted token is accepted if it is the target's most probable one."""

from __future__ import annotations

from sdk.runtimes.generation.contracts import (
    ROOT,
    SAMPLINGS,
    Chance,
    DraftTree,
    TargetRows,
    Verdict,
)


class GreedyMatch:
    """Exact for any draft; no distribution is worked out."""

    lossless = True
    greedy_only = True
    accepts = frozenset(SAMPLINGS)

    def verify(
        self,
        tree: DraftTree,
        target: TargetRows,
        chance: Chance,  # noqa: ARG002  the protocol's; nothing is left to chance
        position: int,  # noqa: ARG002
    ) -> Verdict:
        """Follow the most probable tokens down the tree."""
        path: list[int] = []
        node, evaluated = ROOT, 0
        token = target.best(node)
        while below := tree.children(node):
            evaluated += len(below)
            found = [child for child in below if tree.tokens[child] == token]
            if not found:
                return Verdict(tuple(path), token, evaluated, bonus=False)
            node = found[0]
            path.append(node)
            token = target.best(node)
        return Verdict(tuple(path), token, evaluated, bonus=True)


VERIFIER = GreedyMatch
