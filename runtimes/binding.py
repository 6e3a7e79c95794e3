"""An engine call on arrays that stay: many calls, and nothing to be bound in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sdk.runtimes.session import Session
from sdk.signature import Array


def bind(
    session: Session, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
) -> Callable[[], object]:
    """A call that reads `inputs` and fills `outputs`, which the caller changes in place.

    Engines that can bind memory have a `bind` of their own; the others are simply run.
    """
    own = getattr(session, "bind", None)
    if own is not None:
        call: Callable[[], object] = own(inputs, outputs)
        return call
    return lambda: session.run(inputs, outputs)
