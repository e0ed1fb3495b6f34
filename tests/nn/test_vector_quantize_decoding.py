"""From indices back to vectors with VectorQuantize."""

import pytest
import torch
from vector_quantizers import GRADIENT, quantizer


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"heads": 2, "codebook_dim": 3}, (2, 12, 8)),
        ({"heads": 2, "codebook_dim": 4}, (2, 12, 8)),
        ({"codebook_dim": 3, "accept_image_fmap": True}, (2, 8, 3, 4)),
        ({"heads": 2, "codebook_dim": 3, "accept_3d_fmap": True}, (2, 8, 2, 3, 2)),
        ({"codebook_dim": 3, "channel_last": False}, (2, 8, 12)),
        ({"codebook_dim": 3}, (5, 8)),
        ({"codebook_dim": 3}, (2, 3, 4, 8)),
        ({"affine_param": True}, (2, 12, 8)),
        ({"vq_bridge": torch.nn.Linear(8, 8)}, (2, 12, 8)),
        ({"use_cosine_sim": True, **GRADIENT}, (2, 12, 8)),
    ],
    ids=str,
)
def test_indices_decode_to_what_forward_gave(options, shape):
    module = quantizer(**options)
    module(torch.randn(shape))
    quantized, indices, _ = module.eval()(torch.randn(shape))
    assert quantized.shape == shape
    torch.testing.assert_close(module.get_output_from_indices(indices), quantized)


def test_dropped_indices_decode_to_zeros():
    module = quantizer()
    codes = module.get_codes_from_indices(torch.tensor([[3, -1]]))
    assert torch.equal(codes[0, 0], module.codebook[3])
    assert not codes[0, 1].any()


@pytest.mark.parametrize("options", [{}, {"codebook_dim": 3}], ids=str)
def test_decoding_in_a_bfloat16_model(options):
    module = quantizer(**options).bfloat16().eval()
    quantized, indices, _ = module(torch.randn(2, 12, 8).bfloat16())
    decoded = module.get_output_from_indices(indices)
    assert decoded.dtype == torch.bfloat16
    torch.testing.assert_close(decoded, quantized)


def test_indices_given_return_the_output():
    module = quantizer(codebook_dim=3, accept_image_fmap=True).eval()
    x = torch.randn(2, 8, 3, 4)
    quantized, indices, _ = module(x)
    again, loss = module(x, indices=indices)
    torch.testing.assert_close(again, quantized)
    assert loss > 0
