"""How often the next token is among n drafted ones: at best, and by each verifier.

    python tests/bench/speculation/acceptance.py --target FOLDER --draft FOLDER --prompts FOLDER

Exact, by the rows p of the target and q of the draft behind held-out text, both cut to their
`--top-k` most probable tokens and the temperature. "Towards Optimal Multi-draft Speculative
Decoding" (arXiv:2502.18779): no verifier is above the optimum of its way of drawing, the greedy one
attains it, and which verifier is best depends on temperature and n.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pair import loaded, parser, prompts, tell

from sdk.runtimes.generation.bounds import ACCEPTANCE, optimal_acceptance
from sdk.runtimes.generation.config import GenerationConfig
from sdk.runtimes.generation.contracts import Row
from sdk.runtimes.generation.transforms import truncated

WAYS = ("iid", "without_replacement", "greedy")
CEILING = {"speculative_sampling": "iid", "rrs": "iid", "k_seq": "iid",
           "rrs_without_replacement": "without_replacement", "greedy_draft": "greedy"}  # fmt: skip
Pairs = list[tuple[NDArray[np.float32], NDArray[np.float32]]]


def logits(options: Any) -> Pairs:
    """Logits of both behind some places of each prompt, from one pass over it."""
    target, draft = loaded(options.target, options), loaded(options.draft, options)
    found: Pairs = []
    for prompt in prompts(target, options, options.kind):
        rows = []
        for model in (target, draft):
            session = model.language.cached.session
            session.rollback(0)
            rows.append(np.array(session.forward(prompt).logits))
        places = np.linspace(8, len(prompt) - 1, options.places).astype(int)
        found += [(rows[0][place], rows[1][place]) for place in places if len(prompt) > 9]
    return found


def distributions(pairs: Pairs, temperature: float, top_k: int) -> Iterator[tuple[Row, Row]]:
    """p and q on the tokens that one of them has."""
    config = GenerationConfig(temperature=temperature, top_k=top_k)
    for both in pairs:
        p, q = (truncated(row.astype(np.float64), config) for row in both)
        kept = (p > 0) | (q > 0)
        yield p[kept], q[kept]


def table(pairs: Pairs, options: Any) -> Iterator[dict[str, Any]]:
    """A row for each temperature and number of drafts: means over the places."""
    for temperature in options.temperatures:
        rows = list(distributions(pairs, temperature, options.top_k))
        for n in options.drafts:
            best = {way: [optimal_acceptance(p, q, n, way) for p, q in rows] for way in WAYS}
            got = {name: [by(p, q, n) for p, q in rows] for name, by in ACCEPTANCE.items()}
            for name, values in got.items():
                over = max(v - b for v, b in zip(values, best[CEILING[name]], strict=True))
                sampled = name == "rrs_without_replacement" and n > 2
                assert sampled or over < 1e-6, f"{name} is above its bound by {over}"
            means = {f"best {way}": float(np.mean(v)) for way, v in best.items()}
            means |= {name: float(np.mean(values)) for name, values in got.items()}
            yield {"temperature": temperature, "n": n, "places": len(rows), **means}


def main() -> None:
    """Print the table."""
    options_ = parser(__doc__, requests=24)
    options_.add_argument("--kind", default="completion", help="the set of prompts")
    options_.add_argument("--places", type=int, default=4, help="of each prompt")
    options_.add_argument("--top-k", type=int, default=64)
    options_.add_argument("--temperatures", type=float, nargs="+", default=[0.3, 0.6, 1.0])
    options_.add_argument("--drafts", type=int, nargs="+", default=[1, 2, 4])
    options = options_.parse_args()
    tell(table(logits(options), options), options)


if __name__ == "__main__":
    main()
