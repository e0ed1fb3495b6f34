"""load_quantizer of live modules: settings, device, dtype and mode come with the weights."""

import copy

import codecs_of_others as others
import pytest
import torch
from other_libraries import installed
from torch import nn
from torch.nn import functional as F  # noqa: N812

import vqvae_fast
from vqvae_fast.checkpoints import read_quantizer

B, T, Q, K, D, C = others.B, others.T, others.Q, others.K, others.D, others.C


def peer_module(kind="VectorQuantize", **options):
    peer = pytest.importorskip("vector_quantize_pytorch")
    return getattr(peer, kind)(**{"dim": D, "codebook_size": 16} | options)


def model(quantizer):
    return nn.ModuleDict({"encoder": nn.Linear(2, 2), "quantizer": quantizer})


PEERS = [
    ("VectorQuantize", {"commitment_weight": 0.3, "rotation_trick": False, "decay": 0.5}),
    ("ResidualVQ", {"num_quantizers": 3, "codebook_dim": 4, "quant_grad_frac": 0.5}),
    ("GroupedResidualVQ", {"num_quantizers": 2, "groups": 2, "commitment_weight": 0.2}),
    ("SimVQ", {"commitment_weight": 0.3, "rotation_trick": False}),
    ("ResidualSimVQ", {"num_quantizers": 2, "input_to_quantize_commit_loss_weight": 1.0}),
    ("VectorQuantize", {"vq_bridge": nn.Linear(D, D), "sync_update_v": 0.3}),
]


@pytest.mark.parametrize("prefix", [None, "quantizer"])
@pytest.mark.parametrize(("kind", "options"), PEERS)
def test_peers_in_a_model(kind, options, prefix):
    pytest.importorskip("vector_quantize_pytorch")
    from beside_the_peer import compare

    theirs = peer_module(kind, **copy.deepcopy(options))
    ours = vqvae_fast.load_quantizer(model(theirs), prefix)
    assert type(ours) is getattr(vqvae_fast, kind)
    assert ours.training
    compare((theirs, ours), (2, 12, D), {})


def test_random_projections():
    """Their VectorQuantize alone has a known layout: the whole is found all the same."""
    theirs = peer_module("RandomProjectionQuantizer", codebook_dim=4, num_codebooks=2, norm=False)
    ours = vqvae_fast.load_quantizer(model(theirs))
    x = torch.randn(2, 12, D)
    assert isinstance(ours, vqvae_fast.RandomProjectionQuantizer)
    assert torch.equal(ours(x), theirs(x))


def test_options_come_before_what_was_read():
    theirs = peer_module(commitment_weight=0.3, decay=0.5)
    ours = vqvae_fast.load_quantizer(theirs, commitment_weight=0.7)
    assert (ours.commitment_weight, ours.decay) == (0.7, 0.5)
    assert vqvae_fast.load_quantizer(theirs, learnable_codebook=True, ema_update=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_dtype_and_mode(dtype, training):
    theirs = peer_module(codebook_dim=4).to(dtype).train(training)
    theirs.project_in.requires_grad_(False)
    ours = vqvae_fast.load_quantizer(theirs)
    assert ours.training is training
    assert ours.project_in.weight.dtype == ours.zero.dtype == dtype
    assert torch.equal(ours.project_out.weight, theirs.project_out.weight)
    # Codes that are averages stay in float32 in a model of half precision.
    assert torch.equal(ours._codebook.embed.to(dtype), theirs._codebook.embed)
    assert [p.requires_grad for p in ours.parameters()] == [False, False, True, True]


def test_codes_of_float64_lose_nothing():
    theirs = nn.Module()
    theirs.quantizer = nn.Module()
    theirs.quantizer.embedding = nn.Embedding(16, D, dtype=torch.float64)
    ours = vqvae_fast.load_quantizer(theirs.eval().requires_grad_(False))
    assert torch.equal(ours.codebook, theirs.quantizer.embedding.weight)
    assert not ours.training
    assert not ours.codebook.requires_grad


def test_nothing_is_shared_with_the_live_module():
    theirs = peer_module(vq_bridge=nn.Linear(D, D))
    before = copy.deepcopy(theirs.state_dict())
    ours = vqvae_fast.load_quantizer(theirs)
    for tensor in ours.state_dict().values():
        tensor.fill_(0)
    assert all(torch.equal(before[name], now) for name, now in theirs.state_dict().items())


def test_several_need_a_prefix():
    two = nn.ModuleDict({"a": peer_module(decay=0.5), "b": peer_module(decay=0.6)})
    with pytest.raises(ValueError, match="several quantizers, choose one by its prefix: a, b"):
        vqvae_fast.load_quantizer(two)
    assert vqvae_fast.load_quantizer(two, "b").decay == 0.6
    mixed = nn.ModuleDict(
        {"a": peer_module(), "vq": nn.ModuleDict({"embedding": nn.Embedding(3, 2)})}
    )
    with pytest.raises(ValueError, match="several quantizers, choose one by its prefix: a, vq"):
        vqvae_fast.load_quantizer(mixed)


@pytest.mark.parametrize("prefix", [None, "0", "missing"])
def test_unknown_modules_raise_what_their_state_dict_raises(prefix):
    unknown = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no quantizer is known") as of_weights:
        vqvae_fast.load_quantizer(unknown.state_dict(), prefix)
    with pytest.raises(ValueError) as of_module:  # noqa: PT011
        vqvae_fast.load_quantizer(unknown, prefix)
    assert str(of_module.value) == str(of_weights.value)


def test_prefix_of_more_than_the_quantizer():
    deep = nn.ModuleDict({"model": model(peer_module())})
    with pytest.raises(ValueError, match=r"below 'model' there is more than the quantizer model.q"):
        vqvae_fast.load_quantizer(deep, "model")


def test_arguments_of_other_types():
    with pytest.raises(TypeError, match="prefix must be a string or None"):
        vqvae_fast.load_quantizer(nn.Linear(2, 2), 3)
    with pytest.raises(TypeError, match="source must be a path"):
        read_quantizer(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="novelty"):
        vqvae_fast.load_quantizer(peer_module(), novelty=True)


def test_what_is_ours_already():
    ours = model(vqvae_fast.VectorQuantize(D, 16))
    with pytest.raises(ValueError, match="quantizer is a VectorQuantize of vqvae_fast already"):
        vqvae_fast.load_quantizer(ours)


def test_what_cannot_be_read():
    theirs = peer_module()
    theirs._codebook.gumbel_sample = print
    with pytest.raises(ValueError, match="gumbel_sample of the live module cannot be taken over"):
        vqvae_fast.load_quantizer(theirs)
    assert vqvae_fast.load_quantizer(theirs.state_dict())


# Codebooks in an nn.Embedding.


@pytest.mark.parametrize("legacy", [True, False])
def test_diffusers(legacy):
    theirs = others.diffusers(beta=0.7, legacy=legacy).train()
    ours = vqvae_fast.load_quantizer(model(theirs))
    assert (ours.beta, ours.legacy) == (0.7, legacy)
    x = torch.randn(B, D, 6, 5)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    output, expected, _ = theirs(inputs[0])
    loss, z_q, *_ = ours(inputs[1])
    torch.testing.assert_close(loss, expected)
    (expected + output.square().sum()).backward()
    (loss + z_q.square().sum()).backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(ours.embedding.weight.grad, theirs.embedding.weight.grad)


_TOKENIZERS = ("Chameleon", "Janus", "GlmImage")


def _tokenizer(name):
    folder = {"GlmImage": "glm_image"}.get(name, name.lower())
    library = installed(f"transformers.models.{folder}.modeling_{folder}")
    config = getattr(library, f"{name}VQVAEConfig")()
    config.num_embeddings, config.embed_dim = 24, D
    theirs = getattr(library, f"{name}VQVAEVectorQuantizer")(config)
    theirs.beta = 0.7
    nn.init.normal_(theirs.embedding.weight)
    return theirs


@pytest.mark.parametrize("name", _TOKENIZERS[:2])
def test_tokenizers_of_transformers_keep_their_loss(name):
    theirs = _tokenizer(name).double()
    ours = vqvae_fast.load_quantizer(model(theirs))
    inputs = [torch.randn(B, D, 6, 5, dtype=torch.float64, requires_grad=True)]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    output, expected, indices = theirs(inputs[0])
    loss, z_q, *_, codes = ours(inputs[1])
    assert torch.equal(codes.flatten(), indices)
    torch.testing.assert_close(loss, expected)
    (expected + output.square().sum()).backward()
    (loss + z_q.square().sum()).backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(ours.embedding.weight.grad, theirs.embedding.weight.grad)


def test_glm_image_finds_directions():
    theirs = _tokenizer("GlmImage")
    with pytest.raises(ValueError, match=r"normalize of the live .*; call eval\(\) first"):
        vqvae_fast.load_quantizer(model(theirs))
    ours = vqvae_fast.load_quantizer(model(theirs).eval())
    x = torch.randn(B, D, 6, 5)
    quantized, _, indices = theirs(x)
    _, z_q, *_, codes = ours(x)
    assert torch.equal(codes.flatten(), indices)
    torch.testing.assert_close(z_q, quantized)


def test_remapped_indices_are_refused():
    theirs = others.diffusers(beta=0.7)
    theirs.remap = "used.npy"
    with pytest.raises(ValueError, match="remap of the live module cannot be taken over"):
        vqvae_fast.load_quantizer(model(theirs))


class Embedded(nn.Module):
    """Holds a codebook and attributes, as the classes of several projects do."""

    def __init__(self, **attributes):
        super().__init__()
        self.embedding = nn.Embedding(16, D)
        for name, value in attributes.items():
            setattr(self, name, value)


def test_attributes_of_taming_and_latent_diffusion():
    ours = vqvae_fast.load_quantizer(model(Embedded(beta=0.5, legacy=True, remap=None)))
    assert (ours.beta, ours.legacy) == (0.5, True)
    ours = vqvae_fast.load_quantizer(model(Embedded(beta=0.5, legacy=True)), legacy=False)
    assert (ours.beta, ours.legacy) == (0.5, False)


def test_the_first_quantizer_of_taming_has_one_loss():
    kind = type("VectorQuantizer", (Embedded,), {"__module__": "taming.modules.vqvae.quantize"})
    ours = vqvae_fast.load_quantizer(model(kind(beta=0.5)))
    assert (ours.beta, ours.legacy) == (0.5, True)


def test_attributes_of_llamagen():
    theirs = Embedded(beta=0.5, l2_norm=True, entropy_loss_ratio=0.0)
    with pytest.raises(ValueError, match=r"l2_norm of the live .*; give the option l2_norm, or"):
        vqvae_fast.load_quantizer(model(theirs))
    ours = vqvae_fast.load_quantizer(model(theirs).eval())
    assert (ours.beta, ours.legacy) == (0.5, False)
    torch.testing.assert_close(ours.codebook, F.normalize(theirs.embedding.weight))
    theirs.train()
    theirs.l2_norm = False
    assert torch.equal(vqvae_fast.load_quantizer(model(theirs)).codebook, theirs.embedding.weight)
    theirs.entropy_loss_ratio = 0.1
    with pytest.raises(ValueError, match=r"entropy_loss_ratio of the live .*; call eval\(\) first"):
        vqvae_fast.load_quantizer(model(theirs))
    assert vqvae_fast.load_quantizer(model(theirs).eval())


def test_a_beta_of_an_unknown_loss_is_left_alone():
    """Which of the two terms it weighs is not known."""
    assert vqvae_fast.load_quantizer(model(Embedded(beta=0.5))).beta == 0.25


def test_averages_of_taming_and_of_rosinality():
    theirs = Embedded(beta=0.5)
    theirs.embedding = nn.Module()
    theirs.embedding.decay, theirs.embedding.eps = 0.9, 1e-3
    for name, shape in (("weight", (16, D)), ("embed_avg", (16, D)), ("cluster_size", (16,))):
        theirs.embedding.register_buffer(name, torch.rand(shape))
    ours = vqvae_fast.load_quantizer(model(theirs))
    assert (ours.beta, ours.learning, ours.ema.decay, ours.ema.eps) == (0.5, "ema", 0.9, 1e-3)
    theirs = nn.Module()
    theirs.n_embed, theirs.decay, theirs.eps = 16, 0.9, 1e-3
    for name, shape in (("embed", (D, 16)), ("embed_avg", (D, 16)), ("cluster_size", (16,))):
        theirs.register_buffer(name, torch.rand(shape))
    ours = vqvae_fast.load_quantizer(nn.ModuleDict({"quantize_t": theirs}))
    assert (ours.learning, ours.ema.decay, ours.ema.eps) == ("ema", 0.9, 1e-3)


# Codecs.


def gradients(module, x, call, channels_last):
    """Return the gradient that a weighted sum of the output gives to the input."""
    x = x.clone().requires_grad_()
    out = call(module, x)
    out = out.transpose(1, 2) if channels_last else out
    weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
    (out * weight).sum().backward()
    return out, x.grad


def test_training_of_encodec(monkeypatch):
    theirs = others.encodec(monkeypatch, codebook_dim=D).module.train()
    for layer in theirs.layers:
        layer.commitment_weight = 0.25
        layer._codebook.decay, layer._codebook.epsilon = 0.8, 1e-3
        layer._codebook.kmeans_iters, layer._codebook.threshold_ema_dead_code = 7, 0
    ours = vqvae_fast.load_quantizer(theirs)
    stage = ours.layers[0]
    assert (stage.decay, stage.eps, stage._codebook.kmeans_iters) == (0.8, 1e-3, 7)
    x = torch.randn(B, C, T)
    expected, right = gradients(theirs, x, lambda module, x: module(x)[0], False)
    got, gradient = gradients(ours, x, lambda module, x: module(x.transpose(1, 2))[0], True)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradient, right)
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        torch.testing.assert_close(layer._codebook.cluster_size[0], other._codebook.cluster_size)
        torch.testing.assert_close(layer._codebook.embed[0], other._codebook.embed)
    losses = [module(x)[2] for module, x in ((theirs, x), (ours, x.transpose(1, 2)))]
    torch.testing.assert_close(losses[1], losses[0][:, 0])


def test_settings_of_encodec_that_are_read(monkeypatch):
    theirs = others.encodec(monkeypatch).module
    assert vqvae_fast.load_quantizer(theirs).layers[0].threshold_ema_dead_code == 2
    theirs.layers[1]._codebook.decay = 0.5
    with pytest.raises(ValueError, match=r"decay of the live module .* the same in all stages"):
        vqvae_fast.load_quantizer(theirs)


@pytest.mark.parametrize("build", [others.dac, others.dac_hugging_face])
def test_training_of_dac(build, monkeypatch):
    theirs = build(monkeypatch).module.train()
    theirs.quantizer_dropout = 0.0
    ours = vqvae_fast.load_quantizer(theirs)
    assert ours.training
    x = torch.randn(B, C, T)
    expected, right = gradients(theirs, x, lambda module, x: module(x)[0], False)
    got, gradient = gradients(ours, x, lambda module, x: module(x.transpose(1, 2))[0], True)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-4)
    theirs.quantizer_dropout = 0.5
    with pytest.raises(
        ValueError, match=r"quantizer_dropout of the live .* the option quantize_dr"
    ):
        vqvae_fast.load_quantizer(theirs)
    assert vqvae_fast.load_quantizer(theirs, quantize_dropout=True).quantize_dropout
    assert not vqvae_fast.load_quantizer(theirs.eval()).quantize_dropout


@pytest.mark.parametrize("build", [others.dac, others.dac_hugging_face])
@torch.no_grad()
def test_stages_in_use_of_dac(build, monkeypatch):
    theirs = build(monkeypatch)
    theirs.module.n_codebooks = 2
    ours = vqvae_fast.load_quantizer(theirs.module)
    x = torch.randn(B, C, T)
    assert torch.equal(ours(x.transpose(1, 2))[1], theirs.encode(x))
    assert ours.num_quantizers == 2


@torch.no_grad()
def test_stages_in_use_of_moshi(monkeypatch):
    theirs = others.moshi(monkeypatch)
    theirs.module.set_num_codebooks(3)
    ours = vqvae_fast.load_quantizer(theirs.module)
    x = torch.randn(B, C, T)
    assert torch.equal(ours(x)[1], theirs.encode(x))
    assert ours.num_quantizers == 3


@torch.no_grad()
def test_stages_in_use_of_mimi_at_hugging_face(monkeypatch):
    theirs = others.mimi_hugging_face(monkeypatch)
    theirs.module.max_num_quantizers = 3
    ours = vqvae_fast.load_quantizer(theirs.module)
    x = torch.randn(B, C, T)
    assert torch.equal(ours(x)[1], theirs.encode(x))
    assert ours.num_quantizers == 3


def test_settings_of_moshi(monkeypatch):
    theirs = others.moshi(monkeypatch).module
    for part in (theirs.rvq_first, theirs.rvq_rest):
        for layer in part.vq.layers:
            layer._codebook.decay = 0.5
    assert vqvae_fast.load_quantizer(theirs).rvq_rest.vq.layers[0].decay == 0.5
    theirs.rvq_rest.q_dropout = True
    theirs.train()
    with pytest.raises(
        ValueError, match=r"threshold_usage_ratio .* option threshold_ema_dead_code"
    ):
        vqvae_fast.load_quantizer(theirs)
    ours = vqvae_fast.load_quantizer(theirs, threshold_ema_dead_code=1)
    assert ours.rvq_rest.vq.quantize_dropout
    assert not ours.rvq_first.vq.quantize_dropout
    theirs.rvq_rest.no_quantization_rate = 0.1
    with pytest.raises(ValueError, match="no_quantization_rate of the live module"):
        vqvae_fast.load_quantizer(theirs, threshold_ema_dead_code=1)


def test_dropout_of_moshi_behind_several_semantic_stages(monkeypatch):
    """Ours would drop stages of the semantic part, too."""
    theirs = others.moshi(monkeypatch, n_q_semantic=2, q_dropout=True).module
    ours = vqvae_fast.load_quantizer(theirs)
    assert not ours.rvq_rest.vq.quantize_dropout
    with pytest.raises(
        ValueError, match=r"q_dropout of the live .* give the option quantize_dropout"
    ):
        vqvae_fast.load_quantizer(theirs.train(), threshold_ema_dead_code=1)


def test_orthogonality_loss_of_audiocraft_is_refused_in_training(monkeypatch):
    theirs = others.encodec(monkeypatch).module
    theirs.layers[0].orthogonal_reg_weight = 0.1
    assert vqvae_fast.load_quantizer(theirs)
    with pytest.raises(
        ValueError, match=r"orthogonal_reg_weight of the live .*; call eval\(\) first"
    ):
        vqvae_fast.load_quantizer(theirs.train())


def test_another_epsilon_of_mimi_is_refused(monkeypatch):
    theirs = others.moshi(monkeypatch).module
    theirs.rvq_rest.vq.layers[0]._codebook.epsilon = 1e-3
    with pytest.raises(ValueError, match="epsilon of the live module cannot be taken over"):
        vqvae_fast.load_quantizer(theirs)


@pytest.mark.parametrize("build", [others.encodec_hugging_face, others.mimi_hugging_face])
def test_codecs_of_transformers_do_not_learn(build, monkeypatch):
    theirs = build(monkeypatch)
    ours = vqvae_fast.load_quantizer(theirs.module.train())
    before = copy.deepcopy(ours.state_dict())
    x = torch.randn(B, theirs.channels, T)
    ours(x.transpose(1, 2) if theirs.channels_last else x)
    assert all(torch.equal(before[name], now) for name, now in ours.state_dict().items())
