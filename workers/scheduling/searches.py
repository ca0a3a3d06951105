"""A beam search inside the scheduler: the sequences of one request, and the candidates they have in hand."""

from dataclasses import dataclass, field

from rayline.protos.events import Beam, TokenLogprob
from rayline.workers.scheduling.beams import BeamRules, Heir, Search, advance, best
from rayline.workers.scheduling.sequence import Sequence


@dataclass(slots=True, eq=False)
class BeamSearch:
    """`beams` are in the order of the search's hopes, best first. `answers`: candidates by number of the sequence."""

    rules: BeamRules
    beams: list[Sequence]
    search: Search = field(default_factory=Search)
    answers: dict[int, tuple[TokenLogprob, ...]] = field(default_factory=dict)

    def answer(self, beam: Sequence, candidates: tuple[TokenLogprob, ...]) -> list[Heir] | None:
        """Take in the candidates of one beam. The beams of the next step once all have answered, else None."""
        beam.awaited = False
        self.answers[beam.number] = candidates
        if len(self.answers) < len(self.beams):
            return None
        self.search, heirs = advance(self.search, self.rules, [self.answers[beam.number] for beam in self.beams])
        self.answers.clear()
        return heirs

    @property
    def tokens(self) -> int:
        """Of output in each beam."""
        return len(self.beams[0].output_ids)

    @property
    def best(self) -> tuple[Beam, ...]:
        return best(self.search, self.rules)
