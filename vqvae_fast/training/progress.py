"""Shows the progress of a run: a bar in a terminal, lines elsewhere."""

import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm

from vqvae_fast.training.evaluation import psnr
from vqvae_fast.training.runfolder import Row


class Progress:
    """A progress bar, or a line at each held-out measurement where there is no terminal.

    Args:
        first: steps that are done already.
        last: step that it ends with.
        batch_size: images in a step.
        codes: number of codes K.
        shown: True for the bar, False for lines, None to choose by whether stderr is a terminal.
    """

    def __init__(
        self, first: int, last: int, batch_size: int, codes: int, shown: bool | None
    ) -> None:
        self._batch_size, self._codes, self._last = batch_size, codes, last
        shown = sys.stderr.isatty() if shown is None else shown
        self._bar: tqdm[Any] = tqdm(
            total=last,
            initial=first,
            disable=not shown,
            unit="step",
            dynamic_ncols=True,
            bar_format="{desc}{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} "
            "[{elapsed}<{remaining}]{postfix}",
        )
        self._first, self._row = first, Row()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def step(self) -> None:
        """Count one step."""
        self._bar.update()

    def show(self, row: Row) -> None:
        """Show new figures, a row of metrics.jsonl."""
        self._row = row
        if self._bar.disable:
            if "held_out_psnr" in row:
                print(self._line(), file=sys.stderr, flush=True)
            return
        elapsed = self._bar.format_dict["elapsed"] or 1
        speed = (self._bar.n - self._first) * self._batch_size / elapsed
        self._bar.set_postfix_str(f"{self._figures()}, {speed:.0f} img/s", refresh=False)

    def _figures(self) -> str:
        row = self._row
        training = f"loss {row['loss']:.3f}, recon {psnr(row['mse']):.1f} dB, "
        if row["perplexity"] is None:
            collected, wanted = row["kmeans_collected"], row["kmeans_samples"]
            return training + f"k-means has collected {collected} of {wanted} vectors"
        return (
            training
            + f"perplexity {row['perplexity']:.0f}, codes {row['codes_used']:.0f}/{self._codes}"
        )

    def _line(self) -> str:
        row = self._row
        line = f"step {row['step']}/{self._last}: {self._figures()}"
        held_out = row["held_out_psnr"]
        return line if held_out is None else f"{line}, held-out {held_out:.2f} dB"
