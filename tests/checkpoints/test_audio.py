"""EnCodec, DAC and Mimi: built from their key layouts, compared with their formulas.

Here are the layouts of all versions, and what does not depend on a package that may be missing;
test_real_modules.py has the modules themselves.
"""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import vqvae_fast
from vqvae_fast.checkpoints import read_quantizer

B, T, Q, K, D, C = 2, 7, 3, 16, 4, 6


def linear(x, weight, bias=None):
    """A 1x1 convolution [out, in, 1] or a linear map [out, in], channels last."""
    return F.linear(x, weight.reshape(weight.shape[:2]), bias)


def encodec(huggingface: bool, projected: bool) -> dict[str, torch.Tensor]:
    state = {}
    for i in range(Q):
        layer = f"quantizer.layers.{i}" if huggingface else f"quantizer.vq.layers.{i}"
        book = f"{layer}.codebook" if huggingface else f"{layer}._codebook"
        state |= {
            f"{book}.inited": torch.ones(1),
            f"{book}.cluster_size": torch.rand(K) + 1,
            f"{book}.embed": torch.randn(K, D),
            f"{book}.embed_avg": torch.randn(K, D),
        }
        if projected:
            state |= {
                f"{layer}.project_in.weight": torch.randn(D, C),
                f"{layer}.project_in.bias": torch.randn(D),
                f"{layer}.project_out.weight": torch.randn(C, D),
                f"{layer}.project_out.bias": torch.randn(C),
            }
    return state


@pytest.mark.parametrize("huggingface", [True, False])
@pytest.mark.parametrize("projected", [True, False])
def test_encodec(huggingface, projected):
    state = encodec(huggingface, projected)
    ours = vqvae_fast.load_quantizer({"decoder.model.0.bias": torch.zeros(3), **state}).eval()
    x = torch.randn(B, T, C if projected else D)
    names = list(state)
    width = 8 if projected else 4
    residual, total, expected = x, 0, []
    for i in range(Q):
        _, _, embed, _, *projection = (state[name] for name in names[width * i : width * (i + 1)])
        z = linear(residual, *projection[:2]) if projected else residual
        chosen = torch.cdist(z, embed).argmin(-1)
        quantized = linear(embed[chosen], *projection[2:]) if projected else embed[chosen]
        residual, total = residual - quantized, total + quantized
        expected.append(chosen)
    with torch.no_grad():
        quantized, indices, _ = ours(x)
        decoded = ours.get_output_from_indices(indices)
    assert torch.equal(indices, torch.stack(expected, -1))
    torch.testing.assert_close(quantized, total)
    torch.testing.assert_close(decoded, total)
    first = ours.layers[0]._codebook
    assert torch.equal(first.cluster_size[0], state[names[1]])
    assert torch.equal(first.embed_avg[0], state[names[3]])


def test_encodec_before_training_waits_for_kmeans():
    state = encodec(False, False)
    for i in range(Q):
        state[f"quantizer.vq.layers.{i}._codebook.inited"].zero_()
    assert read_quantizer(state).arguments["kmeans_init"] is True


def dac(naming: str) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """The state dict, and the weights of each stage as the module computes with them."""
    state, stages = {}, []
    for i in range(Q):
        stage = {"codebook": torch.randn(K, D) * torch.rand(K, 1) * 4}
        state[f"quantizer.quantizers.{i}.codebook.weight"] = stage["codebook"]
        for name, out, inner in (("in_proj", D, C), ("out_proj", C, D)):
            module = torch.nn.Conv1d(inner, out, 1)
            if naming == "weight_g":
                with pytest.warns(FutureWarning):
                    torch.nn.utils.weight_norm(module)
                module.weight_g.data.mul_(3)
            elif naming == "parametrizations":
                torch.nn.utils.parametrizations.weight_norm(module)
                module.parametrizations.weight.original0.data.mul_(3)
            path = f"quantizer.quantizers.{i}.{name}."
            state |= {path + key: tensor for key, tensor in module.state_dict().items()}
            module(torch.zeros(1, inner, 1))  # makes the weight of the parts
            stage[name] = module.weight.detach()
            stage[name + ".bias"] = module.bias.detach()
        stages.append(stage)
    return state, stages


@pytest.mark.parametrize("naming", ["weight_g", "parametrizations", "weight"])
def test_dac(naming):
    state, stages = dac(naming)
    assert any(naming in name for name in state)
    ours = vqvae_fast.load_quantizer({"state_dict": state, "metadata": {"kwargs": {}}}).eval()
    x = torch.randn(B, T, C)
    residual, total, expected = x, 0, []
    for stage in stages:
        z = linear(residual, stage["in_proj"], stage["in_proj.bias"])
        unit = F.normalize(z, dim=-1) @ F.normalize(stage["codebook"], dim=-1).T
        code = stage["codebook"][unit.argmax(-1)]  # as it is stored: not normalised
        quantized = linear(code, stage["out_proj"], stage["out_proj.bias"])
        residual, total = residual - quantized, total + quantized
        expected.append(unit.argmax(-1))
    with torch.no_grad():
        quantized, indices, _ = ours(x)
        decoded = ours.get_output_from_indices(indices)
    assert torch.equal(indices, torch.stack(expected, -1))
    torch.testing.assert_close(quantized, total)
    torch.testing.assert_close(decoded, total)
    assert ours.layers[0]._codebook.embed.requires_grad


MIMI = {
    "moshi": ("rvq_{}.vq", "_codebook", "_initialized", "cluster_usage", "embedding_sum"),
    "older moshi": ("rvq_{}.vq", "_codebook", "inited", "cluster_size", "embed_avg"),
    "huggingface": (
        "{}_residual_vector_quantizer",
        "codebook",
        "initialized",
        "cluster_usage",
        "embed_sum",
    ),
}


def mimi(layout: str, projected: bool) -> dict[str, torch.Tensor]:
    place, book, initted, usage, total = MIMI[layout]
    state = {}
    names = ("semantic", "acoustic") if layout == "huggingface" else ("first", "rest")
    for name, stages in zip(names, (1, Q), strict=True):
        part = "quantizer." + place.format(name)
        if projected:
            side = part.removesuffix(".vq")
            state[f"{side}.input_proj.weight"] = torch.randn(D, C, 1)
            state[f"{side}.output_proj.weight"] = torch.randn(C, D, 1)
        for i in range(stages):
            path = f"{part}.layers.{i}.{book}"
            count = torch.rand(K) * 3
            count[0] = 0  # never chosen
            state |= {
                f"{path}.{initted}": torch.ones(1),
                f"{path}.{usage}": count,
                f"{path}.{total}": torch.randn(K, D) * count[:, None],
            }
    return state


@pytest.mark.parametrize("layout", MIMI)
@pytest.mark.parametrize("projected", [True, False])
def test_mimi(layout, projected):
    state = mimi(layout, projected)
    ours = vqvae_fast.load_quantizer({"upsample.weight": torch.zeros(3), **state}).eval()
    x = torch.randn(B, C if projected else D, T)
    values = list(state.values())
    outputs, expected = [], []
    for stages in (1, Q):
        into, out = (values.pop(0), values.pop(0)) if projected else (torch.eye(D), torch.eye(D))
        residual, total = linear(x.transpose(1, 2), into), 0
        for _ in range(stages):
            _, usage, embed_sum = values.pop(0), values.pop(0), values.pop(0)
            embed = embed_sum / usage.clamp(min=1e-5)[:, None]
            chosen = torch.cdist(residual, embed).argmin(-1)
            residual, total = residual - embed[chosen], total + embed[chosen]
            expected.append(chosen)
            outputs.append(linear(total, out).transpose(1, 2))
    whole = outputs[0] + outputs[-1]
    with torch.no_grad():
        quantized, indices, loss = ours(x)
        decoded = ours.get_output_from_indices(indices)
        semantic = ours.get_output_from_indices(indices[..., :1])
        coarse = ours.get_output_from_indices(indices[..., :2])
    assert torch.equal(indices, torch.stack(expected, -1))
    assert loss.shape[-1] == 1 + Q
    torch.testing.assert_close(quantized, whole)
    torch.testing.assert_close(decoded, whole)
    torch.testing.assert_close(coarse, outputs[0] + outputs[1])
    if not projected:
        torch.testing.assert_close(semantic, outputs[0])


def test_mimi_trains():
    state = mimi("moshi", True)
    ours = vqvae_fast.load_quantizer(state)
    quantized, _, loss = ours(torch.randn(B, C, 50))
    (quantized.square().mean() + loss.sum()).backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "build", [lambda: encodec(True, True), lambda: dac("weight_g")[0], lambda: mimi("moshi", True)]
)
def test_stored_and_loaded_again(build, tmp_path):
    state = build()
    expected = vqvae_fast.load_quantizer(state).state_dict()
    read_quantizer(state).save(tmp_path / "own.pt")
    again = vqvae_fast.load_quantizer(tmp_path / "own.pt").state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("build", "name", "message"),
    [
        (lambda: encodec(False, True), "quantizer.vq.layers.0._codebook.extra", "extra"),
        (lambda: encodec(False, True), "quantizer.vq.extra", "extra"),
        (lambda: dac("weight")[0], "quantizer.quantizers.0.in_proj.extra", "extra"),
        (lambda: mimi("moshi", True), "quantizer.rvq_first.extra", "extra"),
        (lambda: mimi("huggingface", True), "quantizer.extra", "extra"),
    ],
)
def test_what_is_not_known_raises(build, name, message):
    with pytest.raises(ValueError, match=message):
        vqvae_fast.load_quantizer({**build(), name: torch.zeros(1)})


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: encodec(False, False), "quantizer.vq.layers.1._codebook.embed"),
        (lambda: dac("weight")[0], "quantizer.quantizers.1.out_proj.bias"),
        (lambda: dac("weight_g")[0], "quantizer.quantizers.1.out_proj.weight_v"),
        (lambda: mimi("moshi", True), "quantizer.rvq_rest.vq.layers.0._codebook.embedding_sum"),
    ],
)
def test_what_is_missing_is_named(build, name):
    state = build()
    del state[name]
    with pytest.raises(ValueError, match=f"lacks {name}"):
        vqvae_fast.load_quantizer(state)


def test_mimi_without_its_acoustic_half():
    state = {name: t for name, t in mimi("moshi", True).items() if "rvq_rest" not in name}
    with pytest.raises(ValueError, match=r"rvq_rest\.vq\.layers must be numbered"):
        vqvae_fast.load_quantizer(state)
