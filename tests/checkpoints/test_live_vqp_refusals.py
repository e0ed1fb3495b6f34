"""What cannot be read from live modules of vector-quantize-pytorch is refused, by its name."""

import pytest
import torch
from live_peers import BASE, GRADIENT, SGD, made, peer
from torch import nn

from vqvae_fast.checkpoints.live import constructor_arguments, peer_class


class Switching(nn.Module):
    """Changes what a method of all modules does."""

    def train(self, mode=True):
        return super().train(False)


def test_subclasses():
    class Named(peer.VectorQuantize):
        """Adds to what the class does, and changes nothing of it."""

        def __init__(self):
            super().__init__(8, 16, commitment_weight=0.5)

        def usage(self):
            return self._codebook.cluster_size

    class Louder(peer.VectorQuantize):
        def forward(self, x):
            return super().forward(2 * x)

    class Mixed(peer.VectorQuantize, Switching):
        pass

    class Imposter(nn.Module):
        pass

    Imposter.__qualname__ = "VectorQuantize"
    assert peer_class(Named()) == "VectorQuantize"
    assert constructor_arguments(Named())["commitment_weight"] == 0.5
    with pytest.raises(ValueError, match=r"forward of the live module .* not what a Vector"):
        constructor_arguments(Louder(8, 16))
    with pytest.raises(ValueError, match="train of the live module"):
        constructor_arguments(Mixed(8, 16))
    assert peer_class(Imposter()) is None
    with pytest.raises(TypeError, match="module must be one of VectorQuantize, ResidualVQ"):
        constructor_arguments(nn.Linear(2, 2))


def _rule_like(parameters):
    """An optimizer whose constructor takes more than its groups show."""

    class Rule(torch.optim.Optimizer):
        def __init__(self, parameters, strength):
            super().__init__(parameters, {})

    return Rule(parameters, 3)


def _two_groups(parameters):
    return torch.optim.SGD([{"params": list(parameters)}, {"params": [], "lr": 1.0}], lr=0.1)


REFUSED = {
    "_codebook": ("VectorQuantize", {}, lambda m: setattr(m, "_codebook", nn.Linear(2, 2))),
    "gumbel_sample": (
        "VectorQuantize",
        {},
        lambda m: setattr(m._codebook, "gumbel_sample", lambda *a, **k: None),
    ),
    "sample_fn": ("VectorQuantize", {}, lambda m: setattr(m._codebook, "sample_fn", print)),
    "forward": ("VectorQuantize", {}, lambda m: setattr(m, "forward", print)),
    "_codebook ": (
        "ResidualVQ",
        {},
        lambda m: setattr(m.layers[0]._codebook, "init_embed_", print),
    ),
    "dim": (
        "SimVQ",
        {},
        lambda m: setattr(m, "code_transform", nn.Sequential(nn.Linear(8, 8), nn.Flatten(0))),
    ),
    "project_in": (
        "VectorQuantize",
        {"codebook_dim": 4},
        lambda m: setattr(m, "project_in", nn.Sequential(m.project_in, nn.ReLU())),
    ),
    "replace_sample_fn": (
        "VectorQuantize",
        {},
        lambda m: setattr(m._codebook, "replace_sample_fn", print),
    ),
    "use_cosine_sim ": (
        "VectorQuantize",
        {},
        lambda m: setattr(m._codebook, "transform_input", torch.nn.functional.normalize),
    ),
    "codebook_size": ("VectorQuantize", {}, lambda m: setattr(m, "codebook_size", 7)),
    "codebook_size ": ("ResidualVQ", {}, lambda m: setattr(m, "codebook_sizes", (16, 16, 7))),
    "codebook_size  ": ("SimVQ", {}, lambda m: setattr(m, "codebook_size", 7)),
    "separate_codebook_per_head": (
        "VectorQuantize",
        {"heads": 2},
        lambda m: setattr(m, "separate_codebook_per_head", True),
    ),
    "project_in ": (
        "VectorQuantize",
        {"codebook_dim": 4, "layernorm_after_project_in": True},
        lambda m: setattr(m.project_in[1], "eps", 0.1),
    ),
    "project_in  ": (
        "ResidualVQ",
        {"codebook_dim": 4},
        lambda m: setattr(m, "project_out", nn.Conv1d(4, 8, 1)),
    ),
    "threshold_ema_dead_code ": (
        "VectorQuantize",
        {"threshold_ema_dead_code": 2, "ema_update": False},
        lambda m: setattr(m._codebook, "threshold_ema_dead_code", 0),
    ),
    "heads": ("ResidualVQ", {}, lambda m: setattr(m.layers[2], "heads", 2)),
    "groups": ("GroupedResidualVQ", {}, lambda m: setattr(m, "groups", 3)),
    "mlp_kwargs ": (
        "ResidualVQ",
        {"implicit_neural_codebook": True},
        lambda m: m.mlps[1].layers.append(m.mlps[1].layers[0]),
    ),
    "channel_first": ("ResidualSimVQ", {}, lambda m: setattr(m, "channel_first", True)),
    "num_quantizers ": ("ResidualSimVQ", {}, lambda m: m.layers.append(m.layers[0])),
    "num_codebooks": (
        "RandomProjectionQuantizer",
        {},
        lambda m: setattr(m, "num_codebooks", 2),
    ),
    "dim ": ("RandomProjectionQuantizer", {}, lambda m: setattr(m.vq, "dim", 5)),
    "learnable_codebook": (
        "VectorQuantize",
        {"orthogonal_reg_weight": 1.0},
        lambda m: setattr(m, "orthogonal_reg_weight", 0.0),
    ),
    "threshold_ema_dead_code": (
        "VectorQuantize",
        {"threshold_ema_dead_code": 2},
        lambda m: setattr(m._codebook, "threshold_ema_dead_code", 1),
    ),
    "sync_codebook": ("VectorQuantize", {}, lambda m: setattr(m._codebook, "use_ddp", True)),
    "use_cosine_sim": (
        "VectorQuantize",
        {},
        lambda m: setattr(m._codebook, "use_cosine_sim", True),
    ),
    "commitment_weight": (
        "ResidualVQ",
        {},
        lambda m: setattr(m.layers[1], "commitment_weight", 0.5),
    ),
    "decay": (
        "GroupedResidualVQ",
        {},
        lambda m: setattr(m.rvqs[1].layers[0]._codebook, "decay", 0),
    ),
    "num_quantizers": ("ResidualVQ", {}, lambda m: m.layers.append(m.layers[0])),
    "shared_codebook": (
        "ResidualVQ",
        {},
        lambda m: setattr(m.layers[1], "_codebook", m.layers[0]._codebook),
    ),
    "quant_grad_frac": ("ResidualVQ", {"diveq": True}, lambda m: setattr(m, "quant_grad_frac", 0)),
    "mlps": (
        "ResidualVQ",
        {"implicit_neural_codebook": True},
        lambda m: m.mlps.__setitem__(0, nn.Linear(8, 8)),
    ),
    "mlp_kwargs": (
        "ResidualVQ",
        {"implicit_neural_codebook": True},
        lambda m: setattr(m.mlps[0], "l2norm_output", True),
    ),
    "codebook_transform": (
        "ResidualSimVQ",
        {},
        lambda m: setattr(m.layers[1], "code_transform", nn.Linear(8, 8)),
    ),
    "rotation_trick": (
        "ResidualSimVQ",
        {},
        lambda m: setattr(m.layers[1], "rotation_trick", False),
    ),
    "norm": ("RandomProjectionQuantizer", {}, lambda m: setattr(m, "norm", nn.LayerNorm(8))),
    "kmeans_init": ("VectorQuantize", {}, lambda m: m.to("meta")),
    "in_place_codebook_optimizer": (
        "VectorQuantize",
        {**GRADIENT, "in_place_codebook_optimizer": _rule_like},
        lambda m: None,
    ),
    "in_place_codebook_optimizer ": (
        "VectorQuantize",
        {**GRADIENT, "in_place_codebook_optimizer": _two_groups},
        lambda m: None,
    ),
    "in_place_codebook_optimizer  ": (
        "VectorQuantize",
        {**GRADIENT, "in_place_codebook_optimizer": SGD},
        lambda m: setattr(m._codebook, "embed", nn.Parameter(torch.randn(1, 16, 8))),
    ),
    "in_place_codebook_optimizer   ": (
        "VectorQuantize",
        {**GRADIENT, "in_place_codebook_optimizer": SGD},
        lambda m: torch.optim.lr_scheduler.ExponentialLR(m.in_place_codebook_optimizer, 0.9),
    ),
    "eps": ("VectorQuantize", {}, lambda m: delattr(m._codebook, "eps")),
    "extra.weight": ("VectorQuantize", {}, lambda m: m.add_module("extra", nn.Linear(2, 2, False))),
}


@pytest.mark.parametrize("setting", REFUSED)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_nothing_is_guessed(setting):
    kind, options, change = REFUSED[setting]
    theirs = getattr(peer, kind)(**BASE[kind], **options)
    change(theirs)
    with pytest.raises(ValueError, match=f"^{setting.strip()} of the live module cannot be taken"):
        constructor_arguments(theirs)


def test_an_argument_of_another_version_is_refused():
    class VectorQuantize(peer.VectorQuantize):
        def __init__(self, dim, codebook_size, novelty=True):
            super().__init__(dim, codebook_size)

    VectorQuantize.__qualname__ = "VectorQuantize"
    VectorQuantize.__module__ = "vector_quantize_pytorch.newer"
    with pytest.raises(ValueError, match="novelty of the live module"):
        constructor_arguments(VectorQuantize(8, 16))


def test_a_module_that_ours_refuses():
    theirs = made("VectorQuantize")
    theirs.accept_image_fmap = theirs.accept_3d_fmap = True
    with pytest.raises(ValueError, match="VectorQuantize does not support this module: accept_"):
        constructor_arguments(theirs)
