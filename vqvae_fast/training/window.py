"""Averages over the steps since the last line of metrics.jsonl, kept on the device."""

import torch
from torch import Tensor

from vqvae_fast.distributed import is_distributed
from vqvae_fast.models import VQVAEOutput
from vqvae_fast.nn.metrics import code_counts, perplexity
from vqvae_fast.training.processes import total


class Window:
    """Sums of a step's figures; reading them is the only time the loop waits for the device."""

    def __init__(self, num_codes: int, device: torch.device) -> None:
        # loss, mse and perplexity.
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._counts = torch.zeros(num_codes, dtype=torch.int64, device=device)
        self._steps = 0

    def add(self, loss: Tensor, mse: Tensor, output: VQVAEOutput) -> None:
        """Count one step in; mse is on the model's scale [-1, 1].

        Of several processes loss and mse are parts: those of all add up to the batch's.
        """
        counts = code_counts(output.indices, len(self._counts))
        batch_perplexity = output.perplexity
        if is_distributed():
            parts = torch.stack([loss, mse]).detach().double()
            together = total(torch.cat([parts, counts.double()]))
            (loss, mse), counts = together[:2], together[2:].long()
            batch_perplexity = perplexity(counts)
        figures = torch.stack([loss, mse, batch_perplexity.to(loss.dtype)])
        self._sums += figures.detach().to(self._sums.dtype)
        self._counts += counts
        self._steps += 1

    def read(self) -> dict[str, float]:
        """The means since the last call: mse of pixel values in [0, 1]; and start anew."""
        loss, mse, perplexity = (self._sums / self._steps).tolist()
        used = int((self._counts > 0).sum())
        self._sums.zero_()
        self._counts.zero_()
        self._steps = 0
        return {"loss": loss, "mse": mse / 4, "perplexity": perplexity, "codes_used": used}

    def state(self) -> dict[str, Tensor | int]:
        """For the checkpoint: a resumed run writes the same next line."""
        return {"sums": self._sums, "counts": self._counts, "steps": self._steps}

    def load(self, state: dict[str, Tensor | int]) -> None:
        """Continue from :meth:`state`."""
        self._sums.copy_(torch.as_tensor(state["sums"]))
        self._counts.copy_(torch.as_tensor(state["counts"]))
        self._steps = int(state["steps"])
