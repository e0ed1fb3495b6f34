"""RandomProjectionQuantizer beside vector-quantize-pytorch's."""

import pytest
import torch

from vqvae_fast.nn.drop_in.random_projection_quantizer import RandomProjectionQuantizer

peer = pytest.importorskip("vector_quantize_pytorch")


@pytest.mark.parametrize("books", [1, 3])
@pytest.mark.parametrize("norm", [True, False])
def test_labels_and_cross_entropy(books, norm):
    options = {"dim": 10, "codebook_size": 32, "codebook_dim": 4, "num_codebooks": books}
    theirs = peer.RandomProjectionQuantizer(**options, norm=norm)
    ours = RandomProjectionQuantizer(**options, norm=norm)
    ours.load_state_dict(theirs.state_dict())
    x = 3 + torch.randn(2, 7, 10)
    labels = ours(x)
    assert torch.equal(labels, theirs(x))
    assert labels.shape == ((2, 7) if books == 1 else (2, 7, books))
    torch.testing.assert_close(ours(x, labels), theirs(x, labels))


def test_training_mode_changes_nothing():
    module = RandomProjectionQuantizer(dim=10, codebook_size=32, codebook_dim=4).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module(torch.randn(2, 7, 10))
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_wrong_shape():
    module = RandomProjectionQuantizer(dim=10, codebook_size=32, codebook_dim=4)
    with pytest.raises(ValueError, match=r"x must be \[B, N, D=10\], got \[2, 10\]"):
        module(torch.randn(2, 10))
