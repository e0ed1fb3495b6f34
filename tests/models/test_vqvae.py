import pytest
import torch

from vqvae_fast.models import VQVAE, Decoder, Encoder, ResidualLayer, ResidualStack

SMALL = {"h_dim": 8, "res_h_dim": 4, "n_embeddings": 16, "embedding_dim": 4}


def test_shapes_of_the_article():
    x = torch.randn(32, 3, 32, 32)
    model = VQVAE()
    features = model.encoder(x)
    assert features.shape == (32, 128, 8, 8)
    assert model.pre_quantization_conv(features).shape == (32, 64, 8, 8)
    assert model.vector_quantization.codebook.shape == (512, 64)
    embedding_loss, x_hat, perplexity = model(x)
    assert x_hat.shape == x.shape
    assert embedding_loss.shape == perplexity.shape == ()


@pytest.mark.parametrize("downsampling", [1, 2, 3])
@pytest.mark.parametrize("in_channels", [1, 3, 4])
@pytest.mark.parametrize("n_res_layers", [0, 1, 3])
def test_channels_depth_and_downsampling(downsampling, in_channels, n_res_layers):
    model = VQVAE(
        **SMALL, in_channels=in_channels, downsampling=downsampling, n_res_layers=n_res_layers
    )
    x = torch.randn(2, in_channels, 16, 24)
    output = model.forward_with_indices(x)
    assert output.x_hat.shape == x.shape
    assert output.indices.shape == (2, 16 >> downsampling, 24 >> downsampling)
    assert len(model.encoder.conv_stack[-1].stack) == n_res_layers
    (output.embedding_loss + output.x_hat.square().mean()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_encode_and_decode_are_the_two_halves_of_forward():
    model = VQVAE(**SMALL, quantizer={"learning": "ema", "dead_code_threshold": 0.5})
    x = torch.randn(2, 3, 16, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    indices = model.train().encode(x)
    x_hat = model.decode(indices)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    expected = model.eval().forward_with_indices(x)
    assert torch.equal(indices, expected.indices)
    torch.testing.assert_close(x_hat, expected.x_hat)


def test_config_rebuilds_the_model():
    model = VQVAE(
        **SMALL,
        in_channels=1,
        downsampling=3,
        shared_residual=True,
        quantizer={"learning": "ema", "kmeans_init": True, "kmeans_samples": 50},
    )
    again = VQVAE(**model.config)
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(model.eval()(x)[1], again.eval()(x)[1])


def test_l2_norm_quantizes_directions():
    torch.manual_seed(0)
    plain, model = VQVAE(**SMALL), VQVAE(**SMALL, l2_norm=True)
    model.load_state_dict(plain.state_dict())  # no parameters of its own
    quantized = {}
    for name, each in (("plain", plain), ("model", model)):
        each.vector_quantization.register_forward_pre_hook(
            lambda _, given, name=name: quantized.update({name: given[0].detach()})
        )
    x = torch.randn(2, 3, 16, 16)
    output = model.forward_with_indices(x)
    plain(x)
    direction = quantized["plain"] / quantized["plain"].norm(dim=1, keepdim=True)
    torch.testing.assert_close(quantized["model"], direction * SMALL["embedding_dim"] ** 0.5)
    assert torch.equal(model.encode(x), output.indices)
    (output.embedding_loss + output.x_hat.square().mean()).backward()
    assert model.pre_quantization_conv.weight.grad.abs().max() > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)[1].float().square().mean().backward()
    lengths = quantized["model"].float().norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 2.0), rtol=0.01, atol=0)


def test_config_is_its_own_copy():
    options = {"learning": "ema"}
    model = VQVAE(**SMALL, quantizer=options)
    options["learning"] = "gradient"
    assert model.config["quantizer"] == {"learning": "ema"}


def test_weights_are_repeatable():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(VQVAE(**SMALL).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("relu_skip", [False, True])
def test_residual_layer_formula(relu_skip):
    layer = ResidualLayer(6, 3, relu_skip=relu_skip)
    x = torch.randn(2, 6, 5, 5)
    kept = x.clone()
    first, second = layer.res_block[1].weight, layer.res_block[3].weight
    hidden = torch.conv2d(x.clamp(min=0), first, padding=1)
    skip = x.clamp(min=0) if relu_skip else x
    expected = skip + torch.conv2d(hidden.clamp(min=0), second)
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(x, kept), "the input was changed in place"


def test_shared_stack_sums_the_gradients_of_its_uses():
    shared = ResidualStack(4, 3, 2, shared=True)
    separate = ResidualStack(4, 3, 2)
    separate.load_state_dict(shared.state_dict())
    assert len(list(shared.parameters())) == 2
    assert len(list(separate.parameters())) == 4
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(shared(x), separate(x))
    shared(x).square().sum().backward()
    separate(x).square().sum().backward()
    total = [
        a.grad + b.grad
        for a, b in zip(separate.stack[0].parameters(), separate.stack[1].parameters(), strict=True)
    ]
    for ours, expected in zip(shared.parameters(), total, strict=True):
        torch.testing.assert_close(ours.grad, expected)


def test_parts_stand_alone():
    features = Encoder(3, 8, 1, 4, downsampling=1)(torch.randn(2, 3, 8, 8))
    assert features.shape == (2, 8, 4, 4)
    assert (features >= 0).all()
    image = Decoder(8, 8, 1, 4, out_channels=2, upsampling=3)(features)
    assert image.shape == (2, 2, 32, 32)


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_autocast_training_step(learning):
    model = VQVAE(**SMALL, quantizer={"learning": learning, "dead_code_threshold": 0.5})
    x = torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding_loss, x_hat, _ = model(x)
        assert x_hat.dtype == torch.bfloat16
        loss = (x_hat - x).square().mean() + embedding_loss
    assert embedding_loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"h_dim": 0}, "h_dim must be an integer, at least 2, got 0"),
        ({"h_dim": 7}, "h_dim must be even, got 7"),
        ({"res_h_dim": 0}, "res_h_dim must be an integer, at least 1, got 0"),
        ({"n_res_layers": -1}, "n_res_layers must be an integer, at least 0, got -1"),
        ({"in_channels": 1.5}, r"in_channels must be an integer, at least 1, got 1\.5"),
        ({"downsampling": 0}, "downsampling must be an integer, at least 1, got 0"),
        ({"n_embeddings": 0}, "n_e must be a positive integer, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VQVAE(**{**SMALL, **arguments})


def test_unknown_quantizer_option():
    with pytest.raises(TypeError, match="speed"):
        VQVAE(**SMALL, quantizer={"speed": 3})


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 30, 32), (1, 3, 32, 33)])
def test_bad_images(shape):
    with pytest.raises(ValueError, match=r"x must be \[B, 3, H, W\] .* multiples of 4, got \["):
        VQVAE(**SMALL)(torch.zeros(shape))


def test_bad_indices():
    with pytest.raises(ValueError, match=r"indices must be int64 \[B, H, W\], got torch.int64 \[4"):
        VQVAE(**SMALL).decode(torch.zeros(4, dtype=torch.int64))
