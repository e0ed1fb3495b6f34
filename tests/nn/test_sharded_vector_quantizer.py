"""Codes over processes: the choices, codes and gradients of one process that has them all."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from process_group import process_group, run_together
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vqvae_fast.nn import VectorQuantizer
from vqvae_fast.sharded import ShardedVectorQuantizer, sharded_state

K, D, BATCH, STEPS = 37, 6, 8, 4
# The mesh: codes over all processes, or copies of halves.
MESHES = {"2": (2,), "4": (4,), "2x2": (2, 2)}


def feature_maps(scale=0.05):
    generator = torch.Generator().manual_seed(3)
    return scale * torch.randn(STEPS, BATCH, D, 3, 2, generator=generator)


def mesh_of(shape):
    names = ("copies", "codes")[-len(shape) :]
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def beside(mesh, **options):
    """A sharded quantizer and one that holds all its codes."""
    sharded = ShardedVectorQuantizer(K, D, mesh=mesh, **options)
    whole = VectorQuantizer(K, D, sync_codebook=False, **options)
    whole.set_codebook(sharded.codebook.full_tensor())
    return sharded, whole


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.5)


def check_steps(mesh, parts, **options):
    """Each process takes its part of each batch, and the other quantizer the whole batch."""
    rank, world = dist.get_rank(), dist.get_world_size()
    sharded, whole = beside(mesh, **options)
    learns = options["learning"] == "gradient"
    optimizers = [sgd(sharded), sgd(whole)] if learns else []
    for x in feature_maps():
        pieces = x.split(parts)
        z = pieces[rank].clone().requires_grad_()
        all_z = x.clone().requires_grad_()
        sharded_codes = sharded.codebook.full_tensor().detach().clone()
        loss, z_q, perplexity, one_hot, indices = sharded(z)
        _, all_q, all_perplexity, _, all_indices = whole(all_z)
        sizes = [6 * part for part in parts]
        assert torch.equal(indices, all_indices.split(sizes)[rank])
        assert torch.equal(one_hot.dense().argmax(1), indices[:, 0])
        torch.testing.assert_close(z_q, all_q.split(parts)[rank])
        assert torch.equal(z_q, sharded_codes[indices[:, 0]].view(len(z), 3, 2, D).movedim(-1, 1))
        if len(mesh.shape) == 1:  # of copies each counts its own
            torch.testing.assert_close(perplexity, all_perplexity)
        (loss + z_q.sum()).backward()
        if learns:
            # Every process's mean has the same weight, however many vectors it is of.
            pairs = list(zip(pieces, all_indices.split(sizes), strict=True))
            losses = [loss_of(*pair, whole.codebook) for pair in pairs]
            torch.testing.assert_close(loss, losses[rank])
            (sum(losses) / world).backward()
            torch.testing.assert_close(sharded.codebook.grad.full_tensor(), whole.codebook.grad)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(sharded.codebook.full_tensor(), whole.codebook.data)
    x = feature_maps()[0]
    mine, indices = x.split(parts)[rank], whole.encode(x)
    assert torch.equal(sharded.encode(mine), indices.split(parts)[rank])
    decoded = sharded.decode(indices.split(parts)[rank])
    torch.testing.assert_close(decoded, whole.decode(indices).split(parts)[rank])


def loss_of(z, indices, codebook):
    rows, size = z.movedim(1, -1).reshape(-1, D), max(z.numel(), 1)
    codes = codebook[indices[:, 0]]
    commitment = (rows - codes.detach()).square().sum()
    return (0.25 * commitment + (rows.detach() - codes).square().sum()) / size


def check_hard_searches(mesh):
    """Ties across the parts, codes and vectors that are not finite: as in one search."""
    sharded, whole = beside(mesh, learning="ema")
    codes = torch.randn(K, D, generator=torch.Generator().manual_seed(0))
    codes[30] = codes[3]  # the lower index wins
    codes[36], codes[5, 2], codes[20, 0] = torch.nan, torch.inf, -torch.inf
    # Nearer than the neighbour by what float32 distances do not show.
    codes[31] = codes[2] + 1e4
    codes[4] = codes[31] + torch.tensor([1e-3, *[0.0] * (D - 1)])
    rows = torch.cat([codes[[3, 2, 31, 4]], codes[4:5] + 40, torch.randn(3, D)])
    rows[5, 1], rows[6, 0], rows[7, 3] = torch.nan, torch.inf, -torch.inf
    put(sharded, codes)
    whole.set_codebook(codes)
    z = rows.T[None, :, :, None]
    expected = whole.eval().encode(z)
    assert torch.equal(sharded.eval().encode(z), expected)
    for bad in (torch.nan, torch.inf):  # no code is usable
        put(sharded, torch.full((K, D), bad))
        assert not sharded.encode(z).any()


def put(sharded, codes):
    shards = sharded.shards
    part = codes[shards.first : shards.first + shards.count]
    sharded.codebook.to_local().detach().copy_(part)


def check_dead_codes(mesh):
    sharded = ShardedVectorQuantizer(
        K, D, mesh=mesh, learning="ema", decay=0.5, dead_code_threshold=0.2
    )
    rank = dist.get_rank()
    for x in feature_maps(1.0).repeat(5, 1, 1, 1, 1):
        sharded(x.chunk(dist.get_world_size())[rank])
    codes = sharded.codebook.full_tensor()
    assert len(codes.unique(dim=0)) == K
    counts = sharded.encode(feature_maps(1.0)[0]).unique()
    assert len(counts) > K // 2  # uniform codes around 0 would hardly be found
    ema = sharded.ema.embed_avg.full_tensor() / sharded.ema.cluster_size.full_tensor()[:, None]
    torch.testing.assert_close(ema, codes, rtol=1e-3, atol=1e-4)


class Model(nn.Module):
    def __init__(self, mesh):
        super().__init__()
        self.encoder = nn.Conv2d(3, D, 1)
        self.quantizer = ShardedVectorQuantizer(K, D, mesh=mesh, dead_code_threshold=0.01)

    def forward(self, x):
        loss, z_q, *_ = self.quantizer(self.encoder(x))
        return loss + z_q.square().mean()


def ddp(model):
    model._ddp_params_and_buffers_to_ignore = sharded_state(model)
    return DistributedDataParallel(model)


def fsdp(model):
    parameters = dict(model.named_parameters())
    ignored = {parameters[name] for name in sharded_state(model) if name in parameters}
    return fully_shard(model, ignored_params=ignored)


def train(mesh, wrap):
    """The state of a model and its optimizer after some steps."""
    torch.manual_seed(0)
    model = Model(mesh)
    before = model.quantizer.codebook.full_tensor().detach().clone()
    wrapped = wrap(model)
    optimizer = torch.optim.Adam(
        [{"params": model.encoder.parameters()}, {"params": model.quantizer.parameters()}]
    )
    for x in feature_maps()[:, :, :3]:
        wrapped(x.chunk(dist.get_world_size())[dist.get_rank()]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(model.quantizer.codebook.full_tensor(), before)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def check_what_wraps_the_rest(mesh):
    """DistributedDataParallel and fully_shard around it come to the same."""
    state = train(mesh, ddp)
    for name, value in train(mesh, fsdp)["model"].items():
        expected = state["model"][name]
        whole = [t.full_tensor() if isinstance(t, DTensor) else t for t in (value, expected)]
        torch.testing.assert_close(*whole, rtol=1e-4, atol=1e-5)
    return state


def work(rank, folder, shape):
    torch.manual_seed(rank)  # nothing may hang on equal generators
    world = math.prod(shape)
    mesh = mesh_of(shape)
    equal = [BATCH // world] * world
    uneven = [BATCH - world + 2, *[1] * (world - 2), 0]
    for learning in ("gradient", "ema"):
        for parts in (equal, uneven):
            check_steps(mesh, parts, learning=learning)
    check_hard_searches(mesh)
    check_dead_codes(mesh)
    state = check_what_wraps_the_rest(mesh)
    dcp.save(state, checkpoint_id=f"{folder}/checkpoint")
    codes = state["model"]["quantizer.embedding.weight"].full_tensor()
    torch.save((codes, state["model"]["encoder.weight"]), f"{folder}/{rank}.pt")


def load(rank, folder):
    """The checkpoint in another number of processes."""
    torch.manual_seed(rank)
    world = dist.get_world_size()
    model = Model(mesh_of((world,)))
    optimizer = torch.optim.Adam(
        [{"params": model.encoder.parameters()}, {"params": model.quantizer.parameters()}]
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes the state that is loaded into
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    dcp.load(state, checkpoint_id=f"{folder}/checkpoint")
    codes, _ = torch.load(f"{folder}/0.pt")
    assert torch.equal(model.quantizer.codebook.full_tensor(), codes)
    momentum = optimizer.state[model.quantizer.codebook]["exp_avg"].full_tensor()
    assert momentum.any()
    if rank == 0:
        torch.save(momentum, f"{folder}/momentum-{world}.pt")


@pytest.fixture(scope="module", params=MESHES)
def folder(request, tmp_path_factory):
    """Of a run in which every process has found what is expected of it."""
    folder = tmp_path_factory.mktemp("processes")
    shape = MESHES[request.param]
    run_together(work, math.prod(shape), folder, shape)
    return folder


@pytest.mark.quick(1)
def test_as_one_quantizer_with_all_codes(folder):
    states = [torch.load(path) for path in sorted(folder.glob("?.pt"))]
    assert len(states) >= 2
    for state in states[1:]:
        for tensor, first in zip(state, states[0], strict=True):
            assert torch.equal(tensor, first)


@pytest.mark.slow
def test_checkpoints_fit_other_numbers_of_processes(folder):
    for world in (1, 3):
        run_together(load, world, folder)
    one, three = (torch.load(folder / f"momentum-{world}.pt") for world in (1, 3))
    assert torch.equal(one, three)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_checkpoints_fit_a_quantizer_in_one_piece(folder):
    whole = VectorQuantizer(K, D, dead_code_threshold=0.01)
    state = {"model": {f"quantizer.{name}": value for name, value in whole.state_dict().items()}}
    dcp.load(state, checkpoint_id=folder / "checkpoint", no_dist=True)
    codes, _ = torch.load(folder / "0.pt")
    assert torch.equal(whole.codebook, codes)


@pytest.fixture
def alone(tmp_path):
    with process_group(0, 1, tmp_path):
        yield mesh_of((1,))


def test_what_cannot_be_is_refused(alone):
    with pytest.raises(ValueError, match="n_e must be a positive integer, got 0"):
        ShardedVectorQuantizer(0, D, mesh=alone)
    with pytest.raises(ValueError, match="learning must be 'gradient' or 'ema', got 'sgd'"):
        ShardedVectorQuantizer(K, D, mesh=alone, learning="sgd")
    with pytest.raises(ValueError, match=r"mesh must have one dimension .* got 3: \[1, 1, 1\]"):
        ShardedVectorQuantizer(
            K, D, mesh=init_device_mesh("cpu", (1, 1, 1), mesh_dim_names=("a", "b", "c"))
        )
    with pytest.raises(TypeError, match="mesh must be a DeviceMesh, got NoneType"):
        ShardedVectorQuantizer(K, D, mesh=None)
    quantizer = ShardedVectorQuantizer(K, D, mesh=alone)
    with pytest.raises(ValueError, match=r"z must be \[B, e_dim=6, H, W\], got \[2, 5, 1, 1\]"):
        quantizer(torch.zeros(2, 5, 1, 1))
    with pytest.raises(TypeError, match=r"z must be a tensor of floats, got torch\.int64"):
        quantizer.encode(torch.zeros(2, D, 1, 1, dtype=torch.int64))


def test_a_map_without_vectors_changes_nothing(alone):
    quantizer = ShardedVectorQuantizer(K, D, mesh=alone, learning="ema", dead_code_threshold=0.1)
    quantizer(feature_maps()[0])
    before = {name: part.full_tensor().clone() for name, part in quantizer.state_dict().items()}
    quantizer(torch.zeros(0, D, 3, 2))
    for name, part in quantizer.state_dict().items():
        assert torch.equal(part.full_tensor(), before[name]), name


def test_a_vector_beyond_float32_s_distances_teaches_nothing(alone):
    sharded, whole = beside(alone, learning="ema")
    z = feature_maps()[0]
    z[0, :, 0, 0] = 1e30  # finite, but its square is not
    for quantizer in (sharded, whole):
        quantizer(z)
    assert whole.codebook.abs().max() < 1
    torch.testing.assert_close(sharded.codebook.full_tensor(), whole.codebook)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.full((1, 2, 2), -1), f"indices must be from 0 to {K - 1}, got -1 to -1"),
        (torch.full((1, 2, 2), K), f"indices must be from 0 to {K - 1}, got {K} to {K}"),
        (torch.zeros(2, 2, dtype=torch.int64), r"int64 \[B, H, W\], got torch.int64 \[2, 2\]"),
        (torch.zeros(1, 2, 2), r"int64 \[B, H, W\], got torch.float32 \[1, 2, 2\]"),
    ],
)
def test_wrong_indices_are_refused(alone, indices, message):
    with pytest.raises(ValueError, match=message):
        ShardedVectorQuantizer(K, D, mesh=alone).decode(indices)


def test_a_copy_has_codes_of_its_own(alone):
    quantizer = ShardedVectorQuantizer(K, D, mesh=alone, learning="ema")
    start = quantizer.codebook.full_tensor().clone()
    twin = copy.deepcopy(quantizer)
    twin(feature_maps()[0])
    assert torch.equal(quantizer.codebook.full_tensor(), start)
    assert not torch.equal(twin.codebook.full_tensor(), start)


def test_new_codes_are_the_reference_s(alone):
    torch.manual_seed(0)
    codes = ShardedVectorQuantizer(1000, D, mesh=alone).codebook.full_tensor()
    assert codes.abs().max() <= 1 / 1000
    assert codes.abs().max() > 0.9 / 1000
    assert len(codes.unique()) > 5000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(alone, dtype):
    quantizer = ShardedVectorQuantizer(K, D, mesh=alone, learning="ema")
    z = feature_maps()[0].to(dtype)
    _, z_q, _, _, indices = quantizer(z)
    assert z_q.dtype == dtype
    assert indices.shape == (BATCH * 6, 1)


def empty_part(rank, folder):
    with pytest.raises(ValueError, match="4 codes in runs of 2 leave some of 3 processes without"):
        ShardedVectorQuantizer(4, D, mesh=mesh_of((3,)))


@pytest.mark.slow
def test_every_process_has_codes(tmp_path):
    run_together(empty_part, 3, tmp_path)
