"""Makes the quantizer of a codec in transformers exact and fast, without touching the codec.

    python examples/accelerate_a_codec.py --model kyutai/mimi

Without --model the codec has random weights, and nothing is downloaded.
"""

import argparse
import time

import torch
from transformers import MimiConfig, MimiModel

import vqvae_fast


def codec(name: str | None, tiny: bool) -> MimiModel:
    """Return the codec of a checkpoint, or one with random weights."""
    if name is not None:
        return MimiModel.from_pretrained(name).eval()
    small = {"num_hidden_layers": 1, "num_quantizers": 4, "codebook_size": 64} if tiny else {}
    model = MimiModel(MimiConfig(**small))
    for place, codes in model.named_buffers():
        if place.endswith("embed_sum"):
            codes.normal_()
    return model.eval()


def milliseconds(model: MimiModel, audio: torch.Tensor, calls: int) -> float:
    """Return how long one call takes that encodes the audio."""
    model.encode(audio)  # packs the codebooks
    begin = time.perf_counter()
    for _ in range(calls):
        model.encode(audio)
    return 1000 * (time.perf_counter() - begin) / calls


@torch.no_grad()
def main() -> None:
    """Compare, accelerate, time, undo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a checkpoint of Mimi")
    parser.add_argument("--frames", type=int, default=1, help="of 80 ms; a stream has one a call")
    parser.add_argument("--tiny", action="store_true", help="a small codec")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = codec(options.model, options.tiny)
    audio = torch.randn(1, 1, 1920 * options.frames)

    print(vqvae_fast.compare(model, audio, method="encode"))
    before, codes = milliseconds(model, audio, 10), model.encode(audio).audio_codes
    done = vqvae_fast.accelerate(model)
    after, same = milliseconds(model, audio, 10), model.encode(audio).audio_codes
    print(f"encode takes {after:.1f} ms instead of {before:.1f} ms")
    print(f"{int((codes != same).sum())} of {codes.numel()} codes are others")
    done.undo()


if __name__ == "__main__":
    main()
