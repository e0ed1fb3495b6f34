"""Trains an image tokenizer with 65,536 codes in a plain loop, in one process or in several.

    python examples/train_a_tokenizer.py
    torchrun --nproc-per-node 2 examples/train_a_tokenizer.py

The images are random crops of a photograph that comes with scikit-image.
"""

import argparse
import os

import torch
import torch.distributed as dist
from skimage.data import astronaut
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vqvae_fast import VectorQuantizer
from vqvae_fast.models import Decoder, Encoder

CODE_DIM = 16


class Tokenizer(nn.Module):
    """An autoencoder of images with a codebook in the middle."""

    def __init__(self, codes: int):
        super().__init__()
        self.encoder = nn.Sequential(Encoder(3, 64, 2, 32), nn.Conv2d(64, CODE_DIM, 1))
        # What a large codebook needs to stay in use: docs/scaling.md.
        self.quantizer = VectorQuantizer(
            codes,
            CODE_DIM,
            learning="ema",
            decay=0.99,
            kmeans_init=True,
            kmeans_samples=2 * codes,
            dead_code_threshold=0.01,
        )
        self.decoder = Decoder(CODE_DIM, 64, 2, 32)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, h, w] -> [B, 3, h, w], the commitment loss, the perplexity of the codes."""
        commitment, quantized, perplexity, *_ = self.quantizer(self.encoder(images))
        return self.decoder(quantized), commitment, perplexity


def crops(batch: int, generator: torch.Generator) -> Tensor:
    """Return random crops of the photograph, [batch, 3, 64, 64] in [-1, 1]."""
    photograph = torch.from_numpy(astronaut()).permute(2, 0, 1) / 127.5 - 1
    corners = torch.randint(photograph.shape[1] - 64, (batch, 2), generator=generator).tolist()
    return torch.stack([photograph[:, y : y + 64, x : x + 64] for y, x in corners])


def main() -> None:
    """Train, and print the losses of the first process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codes", type=int, default=65536)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32, help="of each process")
    options = parser.parse_args()
    shares = "RANK" in os.environ  # torchrun sets it
    if shares:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank = dist.get_rank() if shares else 0
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    tokenizer: nn.Module = Tokenizer(options.codes).to(device)
    if shares:
        tokenizer = DistributedDataParallel(tokenizer)
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-4)
    generator = torch.Generator().manual_seed(rank)
    for step in range(options.steps):
        images = crops(options.batch, generator).to(device)
        again, commitment, perplexity = tokenizer(images)
        error = nn.functional.mse_loss(again, images)
        optimizer.zero_grad()
        (error + commitment).backward()
        optimizer.step()
        if rank == 0 and (step % 50 == 0 or step == options.steps - 1):
            print(f"step {step}: error {error:.4f}, perplexity {perplexity:.0f}")
    if shares:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
