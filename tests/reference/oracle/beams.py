"""Beam search as the published evaluation scripts run it (transformers 4.37, BeamSearchScorer).

Spelled out because later versions of transformers stop at other moments: from
4.50 on a search may go on where 4.37 has stopped, and find another answer when
the length penalty is above 1.  `oracle` records only what both agree on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Finished:
    """The best `size` hypotheses: (score, ids without the end token)."""

    def __init__(self, size: int, length_penalty: float):
        self.size, self.length_penalty = size, length_penalty
        self.entries: list[tuple[float, list[int]]] = []

    def add(self, ids: list[int], total: float, length: int) -> None:
        """`length` counts the end token where there is one.  A full list drops its worst."""
        score = total / length ** self.length_penalty
        if len(self.entries) < self.size or score > self.worst:
            self.entries.append((score, ids))
            if len(self.entries) > self.size:
                self.entries.remove(min(self.entries, key=lambda e: e[0]))

    @property
    def worst(self) -> float:
        return min(score for score, _ in self.entries)

    def beats(self, best_total: float, length: int) -> bool:
        """early_stopping false: no candidate of this step, taken at its present length, gets in."""
        return len(self.entries) == self.size and self.worst >= best_total / length ** self.length_penalty


def search(logits: Callable[[list[list[int]]], Tensor], eos: list[int], beams: int, length_penalty: float,
           new_tokens: int) -> tuple[list[int], float]:
    """`logits` maps beams of new ids to [beams, vocab].  Returns ids without the end token, and the score."""
    running, totals = [[] for _ in range(beams)], torch.full((beams,), -1e9)
    totals[0] = 0.0  # all beams are equal at first: only one may speak
    finished, done = Finished(beams, length_penalty), False
    for step in range(new_tokens):
        scores = torch.log_softmax(logits(running).float(), dim=-1)
        vocab = scores.shape[-1]
        best = (scores + totals[:, None]).flatten().topk(max(2, 1 + len(eos)) * beams)
        kept = []
        for rank, (total, at) in enumerate(zip(best.values.tolist(), best.indices.tolist())):
            source, token = divmod(at, vocab)
            if token not in eos:
                kept.append((running[source] + [token], total))
            elif rank < beams:  # an end token counts only among the best `beams` candidates
                finished.add(running[source], total, step + 1)
            if len(kept) == beams:
                break
        running, totals = [ids for ids, _ in kept], torch.tensor([total for _, total in kept])
        if finished.beats(best.values[0].item(), step + 1):
            done = True
            break
    if not done:
        for ids, total in zip(running, totals.tolist()):
            finished.add(ids, total, len(ids))
    score, ids = sorted(finished.entries, key=lambda e: e[0])[-1]
    return ids, score
