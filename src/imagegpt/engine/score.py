"""How likely a picture is: the negative log-likelihood of each of its ids, and how open each place was.

An autoregressive network gives a picture's exact probability (Chen et al. 2020, equation 1):
log p(x) = sum over t of log p(x_t | x_1 .. x_{t-1}), with SOS before the first id. A bidirectional (BERT) network gives
none; the sum of log p(x_t | all ids that are not hidden), each id hidden once, is its pseudo-log-likelihood (Besag
1975; of masked language models, Salazar et al. 2020).

Shape suffixes: N all pictures, B pictures, T ids, K colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from imagegpt.engine.features import inputs_of
from imagegpt.errors import InputError

PASSES = 7  # of a bidirectional network: each hides 1/7 of the ids, about the 15 % that it has learnt to guess
Method = Literal["likelihood", "pseudo-likelihood"]
Number = TypeVar("Number", float, NDArray[np.float64])


class Scorer(Protocol):
    """What each id costs, by one backend."""

    rows: int  # pictures that are run together

    def __call__(
        self, inputs_BT: NDArray[np.int64], ids_BT: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """-log p of each id, and the entropy of the distribution that it was drawn from, (B, T) nats each."""
        ...


@dataclass(frozen=True, eq=False)
class Scores:
    """How likely pictures are.

    Args:
        surprise: float32 (pictures, T): -log p of each id given those before it, in nats.
        entropy: float32 (pictures, T): of the model's distribution at each place, in nats; what the surprise would be
            on average if the model were right.
        codec: what the ids are of. It loses something, so bits/dim can't be compared with those of RGB pixels, nor
            between codecs.
        dims: numbers of a picture that an id stands for: 3 of a palette, whose ids are single pixels.
        method: "likelihood", or "pseudo-likelihood" of a bidirectional (BERT) model, which is no probability.
    """

    surprise: NDArray[np.float32]
    entropy: NDArray[np.float32]
    codec: str
    dims: int
    method: Method = "likelihood"

    @property
    def log_likelihood(self) -> NDArray[np.float64]:
        """log p of each picture's ids, in nats: (pictures,), summed in float64."""
        return -self.surprise.sum(1, dtype=np.float64)

    @property
    def nats_per_token(self) -> NDArray[np.float64]:
        """The mean surprise of each picture's ids: (pictures,)."""
        return self.surprise.mean(1, dtype=np.float64)

    @property
    def bits_per_dim(self) -> NDArray[np.float64]:
        """The same in bits for each of a pixel's three numbers: (pictures,); see `codec`."""
        return bits_per_dim(self.nats_per_token, self.dims)

    @property
    def mean_entropy(self) -> NDArray[np.float64]:
        """The mean entropy of each picture's places, in nats: (pictures,)."""
        return self.entropy.mean(1, dtype=np.float64)

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.surprise)


def bits_per_dim(nats_per_token: Number, dims: int) -> Number:
    """nats/token as bits for each of the `dims` numbers of a picture that an id stands for."""
    return nats_per_token / (math.log(2) * dims)


def method_of(causal: bool) -> Method:
    """What a network tells."""
    return "likelihood" if causal else "pseudo-likelihood"


def read_passes(passes: int | None, causal: bool, length: int) -> int:
    """How often the network is run on each picture.

    Args:
        passes: of a bidirectional network; default: 7, and T hides the ids one by one.
        causal: whether it is autoregressive: then once tells all.
        length: T.

    Raises:
        InputError: passes of an autoregressive model, or not 1 to T.
    """
    if causal:
        if passes is not None:
            raise InputError("passes are for bidirectional (BERT) models; one forward tells an autoregressive one's.")
        return 1
    passes = min(PASSES, length) if passes is None else passes
    if not 1 <= passes <= length:
        raise InputError(f"passes must be 1 to {length}, the number of ids, not {passes}.")
    return passes


def hidden_in_turn(passes: int, length: int) -> Iterator[NDArray[np.bool_]]:
    """Which ids each pass over a picture hides, (T,): every id once, scattered, and the same for all pictures."""
    turn_T = np.empty(length, np.int64)
    turn_T[np.random.default_rng(0).permutation(length)] = np.arange(length) % passes
    return (turn_T == turn for turn in range(passes))


def score_ids(
    scorer: Scorer,
    ids_BT: NDArray[np.int64],
    sos: int,
    passes: int | None,
    rows: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The surprise at each id and the entropy of each place, (N, T) nats each.

    Args:
        scorer: runs the network.
        ids_BT: whole pictures.
        sos: the id before the first; in the inputs of a bidirectional network it stands for a hidden id.
        passes: of a bidirectional network; `None` of an autoregressive one.
        rows: pictures that are run together; default: what is fastest.
        progress: called with (pictures done, pictures in all).
    """
    surprise_NT, entropy_NT = np.empty(ids_BT.shape, np.float32), np.empty(ids_BT.shape, np.float32)
    rows = rows or scorer.rows
    for start in range(0, len(ids_BT), rows):
        part = slice(start, min(start + rows, len(ids_BT)))
        if passes is None:
            surprise_NT[part], entropy_NT[part] = scorer(inputs_of(ids_BT[part], sos, True), ids_BT[part])
        else:
            for hidden_T in hidden_in_turn(passes, ids_BT.shape[1]):
                found = scorer(np.where(hidden_T, sos, ids_BT[part]), ids_BT[part])
                surprise_NT[part, hidden_T], entropy_NT[part, hidden_T] = (each[:, hidden_T] for each in found)
        if progress is not None:
            progress(part.stop, len(ids_BT))
    return surprise_NT, entropy_NT
