"""Edits in Triton have the bits of `kernels.edits`."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_waits import no_waits
from torch import Tensor

from rayline.kernels import edits
from rayline.kernels.edits import Edit, mask_of
from rayline.kernels.triton_edits import BLOCK, edited


@st.composite
def any_edit(draw: st.DrawFn, vocab: int) -> Edit | None:
    """Any changes together; ids of one list are apart, as everywhere."""
    seed = draw(st.integers(0, 999))
    random = torch.Generator().manual_seed(seed)

    def some(most: int) -> Tensor:
        count = int(torch.randint(1, min(most, vocab) + 1, (1,), generator=random))
        return torch.randperm(vocab, generator=random)[:count]

    if draw(st.booleans()):
        return None
    seen = some(3 * BLOCK) if draw(st.booleans()) else None
    biased = some(20)
    return Edit(
        seen=seen,
        counts=None if seen is None else torch.randint(0, 4, (len(seen),), generator=random).float(),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.7])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.37])),
        presence_penalty=draw(st.sampled_from([0.0, -0.6])),
        bias=draw(st.sampled_from([None, (biased, torch.randn(len(biased), generator=random) * 50)])),
        banned=tuple(some(9).tolist()) if draw(st.booleans()) else (),
        mask=mask_of(some(vocab).tolist(), vocab) if draw(st.booleans()) else None,
        forced=draw(st.none() | st.integers(0, vocab - 1)),
    )


@given(st.data(), st.integers(1, 4), st.sampled_from([1, 33, 500, 4000]))
@settings(max_examples=30)
def test_edited_logits_have_the_bits_of_torch(data: st.DataObject, count: int, vocab: int) -> None:
    logits = torch.randn(count, vocab, generator=torch.Generator().manual_seed(count)) * 4
    logits[:, vocab // 2] = -torch.inf
    wanted = [data.draw(any_edit(vocab)) for _ in range(count)]
    before = logits.clone()
    with no_waits():
        ours = edited(logits, wanted)
    assert ours.equal(edits.edited(logits, wanted)) and logits.equal(before)
    assert (ours is logits) == (wanted == [None] * count)
