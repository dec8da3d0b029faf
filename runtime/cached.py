"""What an engine's caches hold: which ids, and how much of it a request may take over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]


def _none() -> Ids:
    return np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class Cached:
    """The ids i32 [n] whose keys and values are in the caches, at the positions from 0 on.

    The first `own` of them are what every request of this engine would compute; later ones were computed with choices
    that were given (a replay), or after such, and only `Engine.score` goes on from them. The caches of the MTP layer
    hold the first `drafts` positions, less than n: each is computed from an id and the one after it.

    A request moves from one value to the next: `before` when it begins, so that an end that no one sees claims
    nothing, and `after` when it ends.
    """

    ids: Ids = field(default_factory=_none)
    own: int = 0
    drafts: int = 0

    def reusable(self, prompt: Ids, drafting: bool = False) -> int:
        """Positions that a request with this prompt doesn't compute: those of the longest common prefix of ids.

        The last id of the prompt is always computed, since its logits are needed. With `drafting` the MTP layer goes on
        from there too: it needs the hidden row of the last common position, which no cache has, and its own caches.
        """
        most = min(len(prompt), self.own)
        differ = np.flatnonzero(prompt[:most] != self.ids[:most])
        common = int(differ[0]) if len(differ) else most
        if drafting:
            common = max(0, min(common - 1, self.drafts))
        return min(common, len(prompt) - 1)

    def before(self, position: int) -> Cached:
        """What stays valid while a request computes positions from `position` on, whatever becomes of it."""
        return Cached(self.ids[:position], min(self.own, position), min(self.drafts, max(0, position - 1)))

    def after(self, ids: Sequence[int] | Ids, given: bool = False, drafts: int | None = None) -> Cached:
        """What is valid once the next ids are computed too; `given`: with choices that were given.

        `drafts` says up to which position the caches of the MTP layer are valid, if the request went on with them.
        """
        whole = np.concatenate([self.ids, np.asarray(ids, np.int32)])
        own = self.own if given or self.own < len(self.ids) else len(whole)
        return Cached(whole, own, self.drafts if drafts is None else min(drafts, max(0, len(whole) - 1)))
