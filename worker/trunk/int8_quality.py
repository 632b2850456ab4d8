"""What weights of 8 bits cost in quality, measured before they are used."""

import torch
from torch import Tensor

# Mean divergence of the next token's distribution, in nats, up to which 8 bits are taken.
LIMIT_NATS = 0.1

# Prose, code, figures and another language: what a chat model meets.
SAMPLE = """The bicycle shop on the corner opens at nine. Ask for Mara; she repairs brakes, gears \
and old frames, and tells you beforehand what it costs.

def total(prices: list[float], discount: float = 0.1) -> float:
    return round(sum(prices) * (1 - discount), 2)

Order 4711: 2 tyres at 18.50 each, 1 chain at 24.90, delivery on 3 March. Sum: 61.90.

Question: Why does the sky look blue?
Answer: Air scatters short waves of light more than long ones, so blue reaches us from all sides.

Der Zug nach Bremen hat heute zwanzig Minuten Verspätung. Le café est fermé le lundi.
"""


def divergence_nats(reference: Tensor, found: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of `found` from `reference`.

    Args:
        reference: logits, [tokens, vocab] float32.
        found: logits of the same tokens.
    """
    expected = torch.log_softmax(reference, dim=-1)
    measured = torch.log_softmax(found, dim=-1)
    return float((expected.exp() * (expected - measured)).sum(dim=-1).mean())
