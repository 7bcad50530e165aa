"""The scorer: one set of weights for every engine and every placement, in any number and order.

An engine's row of the observation becomes an embedding; the mean and the maximum of these, with the
fields of the cluster and of the conversation, are a summary (after DeepSets: Zaheer et al., 2017).
A placement's score comes from the embeddings of its two engines, whether they are one, its
``offload_above``, its estimates, and the summary. Permuting the engines permutes the scores. Rows
of zeros, which fill smaller clusters up to the largest where clusters are drawn, count for nothing:
embeddings are not negative, so that a zero never is the maximum alone.

The last layer is one for colocation and one for the rest: on 1P3D, with PPO and one seed, that took
half the steps to the same return as one layer for both.
"""

from __future__ import annotations

import torch
from torch import nn

from conserve_gym.agents.networks.placement_view import N_CONTEXT, N_ENGINE, Seen, parts
from conserve_gym.estimates import TABLE_COLUMNS

ACTIVATION = nn.ReLU


class ClusterSummary(nn.Module):
    """Embeds engines and sums them up.

    Args:
        width: Numbers in an embedding.
        context: Numbers that stand before the engines' rows.

    Attributes:
        size: Numbers in a summary.
    """

    def __init__(self, width: int, context: int) -> None:
        """Make the layers."""
        super().__init__()
        self.engine = nn.Linear(N_ENGINE, width, bias=False)
        self.context = nn.Linear(context, width)
        self.embedding = nn.Linear(width, width)
        self.activation = ACTIVATION()
        self.size = 2 * width + context

    def forward(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (batch, engines, width) and summaries (batch, size)."""
        hidden = self.activation(self.engine(seen.engines) + self.context(seen.context)[:, None])
        real = seen.real[..., None]
        embeddings = self.activation(self.embedding(hidden)) * real
        mean = embeddings.sum(dim=1) / real.sum(dim=1).clamp(min=1)
        pooled = (mean, embeddings.amax(dim=1), seen.context)
        return embeddings, torch.cat(pooled, dim=1)


class Scorer(nn.Module):
    """Scores placements.

    Args:
        n_placements: How many each vector ends with; the weights do not depend on it.
        width: Numbers in an engine's embedding.
        hidden: Numbers between embeddings and score.
        outputs: Scores a placement has.
        context: Numbers that stand before the engines' rows.
    """

    def __init__(
        self,
        n_placements: int,
        width: int,
        hidden: int,
        outputs: int = 1,
        context: int = N_CONTEXT,
    ) -> None:
        """Make the layers; the four before ``score`` are one that is fed by four parts."""
        super().__init__()
        self.n_placements = n_placements
        self.cluster = ClusterSummary(width, context)
        self.prefiller = nn.Linear(width, hidden, bias=False)
        self.decoder = nn.Linear(width, hidden, bias=False)
        self.row = nn.Linear(TABLE_COLUMNS - 1, hidden, bias=False)
        self.summary = nn.Linear(self.cluster.size, hidden)
        self.activation = ACTIVATION()
        self.score = nn.Linear(hidden, 2 * outputs)  # disaggregated, then colocated

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """Return scores (batch, outputs * placements): all of the first output, then the next."""
        seen = parts(views, self.n_placements)
        embeddings, summary = self.cluster(seen)
        at, to = seen.placements[..., 0].long(), seen.placements[..., 1].long()
        colocated = at == to
        row = torch.cat([colocated.to(views.dtype)[..., None], seen.placements[..., 2:]], dim=-1)
        hidden = self.activation(
            _rows(self.prefiller(embeddings), at)
            + _rows(self.decoder(embeddings), to)
            + self.row(row)
            + self.summary(summary)[:, None]
        )
        away, here = self.score(hidden).chunk(2, dim=-1)
        return torch.where(colocated[..., None], here, away).transpose(1, 2).flatten(1)


def _rows(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the rows of (batch, engines, width) that (batch, placements) name."""
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[2]))
