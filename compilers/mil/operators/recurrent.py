"""Recurrent layers, step by step. Sequences are length x batch x features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sdk.compilers.mil.operators.arguments import Operator

ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "scaled_tanh": lambda x: 1.7159 * torch.tanh(2 / 3 * x),
    "hard_sigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
    "sigmoid_hard": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
}

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]


def _walk(x: Tensor, state: State, step: Step, backwards: bool) -> tuple[Tensor, State]:
    """The first part of the state behind every step, in the order of x, and the last state."""
    steps = range(len(x) - 1, -1, -1) if backwards else range(len(x))
    seen: dict[int, Tensor] = {}
    for index in steps:
        state = step(x[index], state)
        seen[index] = state[0]
    return torch.stack([seen[index] for index in range(len(x))]), state


@dataclass(frozen=True)
class Cell:
    """The weights of one direction of an LSTM; gates in the order input, forget, output, cell."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None
    peephole: Tensor | None
    clip: Tensor | None
    activations: tuple[str, str, str]

    def step(self, x: Tensor, state: State) -> State:
        """One step of the state (hidden, cell)."""
        gate, inner, outer = (ACTIVATION[name] for name in self.activations)
        hidden, cell = state
        mixed = F.linear(x, self.weight_ih, self.bias) + F.linear(hidden, self.weight_hh)
        i, f, o, z = mixed.chunk(4, -1)
        peep = (0.0, 0.0, 0.0) if self.peephole is None else self.peephole.chunk(3)
        new = inner(z)
        if self.clip is not None:
            new = new.clamp(-self.clip, self.clip)
        after = gate(f + peep[1] * cell) * cell + gate(i + peep[0] * cell) * new
        return gate(o + peep[2] * after) * outer(after), after


def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    direction: str,
    output_sequence: Tensor,
    recurrent_activation: str,
    cell_activation: str,
    activation: str,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    clip: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, last hidden state, last cell state; both directions side by side."""
    names = (recurrent_activation, cell_activation, activation)
    cells = [Cell(weight_ih, weight_hh, bias, peephole, clip, names)]
    if direction == "bidirectional":
        assert weight_ih_back is not None
        assert weight_hh_back is not None
        cells.append(Cell(weight_ih_back, weight_hh_back, bias_back, peephole_back, clip, names))
    starts = zip(initial_h.chunk(len(cells), -1), initial_c.chunk(len(cells), -1), strict=True)
    results = []
    for index, (cell, start) in enumerate(zip(cells, starts, strict=True)):
        results.append(_walk(x, start, cell.step, direction == "reverse" or index == 1))
    hidden = torch.cat([state[0] for _, state in results], -1)
    sequence = torch.cat([steps for steps, _ in results], -1)
    last = torch.cat([state[1] for _, state in results], -1)
    return sequence if bool(output_sequence) else hidden[None], hidden, last


def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    direction: str,
    output_sequence: Tensor,
    recurrent_activation: str,
    activation: str,
    reset_after: Tensor | None = None,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Hidden states and the last one; gates in the order reset, output, update."""
    gate, outer = ACTIVATION[recurrent_activation], ACTIVATION[activation]
    if reset_after is not None and bool(reset_after):
        raise NotImplementedError("reset_after")

    def step(part: Tensor, state: State) -> State:
        (hidden,) = state
        mixed = F.linear(part, weight_ih, bias)
        ir, io, iz = (mixed if input_bias is None else mixed + input_bias).chunk(3, -1)
        hr, ho, hz = F.linear(hidden, weight_hh).chunk(3, -1)
        update = gate(iz + hz)
        new = outer(io + gate(ir + hr) * ho)
        return ((1 - update) * new + update * hidden,)

    sequence, (hidden,) = _walk(x, (initial_h,), step, direction == "reverse")
    return sequence if bool(output_sequence) else hidden[None], hidden


def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    direction: str,
    output_sequence: Tensor,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """Hidden states and the last one."""
    outer = ACTIVATION[activation]

    def step(part: Tensor, state: State) -> State:
        return (outer(F.linear(part, weight_ih, bias) + F.linear(state[0], weight_hh)),)

    sequence, (hidden,) = _walk(x, (initial_h,), step, direction == "reverse")
    return sequence if bool(output_sequence) else hidden[None], hidden


OPERATORS: dict[str, Operator] = {"lstm": lstm, "gru": gru, "rnn": rnn}
