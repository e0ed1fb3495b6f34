"""Averages over the steps since the last line of metrics.jsonl, kept on the device."""

import torch
from torch import Tensor

from vqvae_fast.checkpoints.tensors import check_tensors
from vqvae_fast.distributed import is_distributed
from vqvae_fast.models import VQVAEOutput
from vqvae_fast.nn import code_counts, perplexity
from vqvae_fast.training.pixel_scale import mse_of_pixels
from vqvae_fast.training.processes import total

# The device counts steps in an int64, which holds more.
_MOST_STEPS = 2**62


class Window:
    """Sums the figures of steps; the loop waits for the device only to read or to save them."""

    def __init__(self, num_codes: int, device: torch.device) -> None:
        # The sums of loss, mse and perplexity.
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._counts = torch.zeros(num_codes, dtype=torch.int64, device=device)
        # The number of steps, and of those in which the codebook had codes.
        self._steps = self._steps_with_codes = 0
        # Whether all steps were finite, and how many were before the first that was not.
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._finite_steps = torch.zeros((), dtype=torch.int64, device=device)

    def add(
        self, loss: Tensor, mse: Tensor, output: VQVAEOutput, finite: Tensor, has_codes: bool = True
    ) -> None:
        """Count one step in.

        Args:
            loss: of the step. With several processes, loss and mse are parts that add up to the
                batch's.
            mse: on the model's scale [-1, 1].
            output: of the model.
            finite: a flag, whether the step has left the model finite.
            has_codes: whether the codebook had codes; until k-means has made them, the indices
                say nothing.
        """
        counts = code_counts(output.indices, len(self._counts))
        batch_perplexity = output.perplexity
        if is_distributed():
            parts = torch.stack([loss, mse]).detach().double()
            together = total(torch.cat([parts, counts.double()]))
            (loss, mse), counts = together[:2], together[2:].long()
            batch_perplexity = perplexity(counts)
        if has_codes:
            self._counts += counts
            self._steps_with_codes += 1
        else:
            batch_perplexity = torch.zeros_like(batch_perplexity)
        figures = torch.stack([loss, mse, batch_perplexity.to(loss.dtype)])
        self._sums += figures.detach().to(self._sums.dtype)
        self._steps += 1
        self._finite &= finite & loss.isfinite()
        self._finite_steps += self._finite

    def steps_since_divergence(self) -> int:
        """How many steps there are from the first that was not finite on; waits for the device."""
        return self._steps - int(self._finite_steps)

    def read(self) -> dict[str, float | None]:
        """Return the means since the last call, and start anew; mse is of pixel values in [0, 1].

        Perplexity and codes used are those of the steps with codes, None if there were none.
        """
        loss, mse, _ = (self._sums / self._steps).tolist()
        effective = used = None
        if self._steps_with_codes:
            effective = float(self._sums[2] / self._steps_with_codes)
            used = int((self._counts > 0).sum())
        self._sums.zero_()
        self._counts.zero_()
        self._finite_steps.zero_()
        self._steps = self._steps_with_codes = 0
        return {
            "loss": loss,
            "mse": mse_of_pixels(mse),
            "perplexity": effective,
            "codes_used": used,
        }

    def state(self) -> dict[str, Tensor | int]:
        """For the checkpoint: a resumed run writes the same next line."""
        return {
            "sums": self._sums,
            "counts": self._counts,
            "steps": self._steps,
            "steps_with_codes": self._steps_with_codes,
        }

    def load(self, state: dict[str, Tensor | int]) -> None:
        """Continue from :meth:`state`.

        Raises:
            ValueError: it is not the state of a window over as many codes.
        """
        sums, counts, steps = state.get("sums"), state.get("counts"), state.get("steps")
        with_codes = state.get("steps_with_codes", steps)  # older checkpoints lack it
        if not (
            isinstance(sums, Tensor)
            and isinstance(counts, Tensor)
            and sums.shape == self._sums.shape
            and counts.shape == self._counts.shape
            and type(steps) is int
            and 0 <= steps <= _MOST_STEPS
            and type(with_codes) is int
            and 0 <= with_codes <= steps
        ):
            raise ValueError(f"window must hold sums [3], counts [{len(self._counts)}] and steps")
        check_tensors({"sums of window": sums, "counts of window": counts})
        if not sums.isfinite().all():
            raise ValueError("the sums of window must be finite")
        self._sums.copy_(sums)
        self._counts.copy_(counts)
        self._steps, self._steps_with_codes = steps, with_codes
        self._finite_steps.fill_(steps)
