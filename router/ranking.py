"""best_of: of all choices that were computed, those with the highest log-probability per token."""

from collections.abc import Sequence
from dataclasses import replace

from rayline.protos.events import ChoiceEnded, Delta


def best_of(events: Sequence[Delta | ChoiceEnded], scores: Sequence[float], shown: int) -> list[Delta | ChoiceEnded]:
    """The events of the `shown` best choices, best first and numbered so, ends scored.

    events: of all choices, each one's in order; scores: by choice; equal ones keep the order of their seeds.
    """
    order = sorted(range(len(scores)), key=lambda choice: -scores[choice])[:shown]
    ranked: list[Delta | ChoiceEnded] = []
    for rank, choice in enumerate(order):
        for event in events:
            if event.choice != choice:
                continue
            if isinstance(event, ChoiceEnded):
                ranked.append(replace(event, choice=rank, score=scores[choice]))
            else:
                ranked.append(replace(event, choice=rank))
    return ranked
