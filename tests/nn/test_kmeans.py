import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from vqvae_fast.nn import KMeansInit, VectorQuantizer, kmeans, replace_dead_codes


def blobs(count: int, per_blob: int, dim: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Tight clusters far apart: (samples [count * per_blob, dim], their centres)."""
    centres = torch.randn(count, dim) * 100
    samples = centres.repeat(per_blob, 1) + torch.randn(count * per_blob, dim) * 0.01
    return samples[torch.randperm(len(samples))], centres


def inertia(samples: torch.Tensor, codes: torch.Tensor) -> float:
    return float(torch.cdist(samples.double(), codes.double()).square().amin(1).sum())


def test_finds_the_clusters():
    samples, centres = blobs(10, 50)
    codes, counts = kmeans(samples, 20, 20)
    assert torch.cdist(centres, codes).amin(1).max() < 0.1
    assert counts.sum() == 500
    assert (counts > 0).all()


def test_every_round_improves_and_ends_at_the_means():
    samples = torch.randn(400, 2)
    errors = []
    for iterations in (1, 3, 30, 60):
        torch.manual_seed(1)
        codes, counts = kmeans(samples, 8, iterations)
        errors.append(inertia(samples, codes))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]
    nearest = torch.cdist(samples, codes).argmin(1)
    for i in range(8):
        assert counts[i] == (nearest == i).sum()
        torch.testing.assert_close(codes[i], samples[nearest == i].mean(0))


def test_fewer_samples_than_codes():
    samples = torch.randn(5, 3)
    codes, counts = kmeans(samples, 12)
    same = (codes[:, None] == samples[None]).all(-1)
    assert same.any(1).all()
    assert same.any(0).all()
    assert counts.sum() == 5
    assert counts.max() == 1


def test_identical_samples():
    codes, counts = kmeans(torch.full((20, 2), 3.0), 4)
    assert (codes == 3).all()
    assert counts.tolist() == [20, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    codes, counts = kmeans(torch.randn(30, 2).to(dtype), 3)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert codes.dtype == counts.dtype == expected


def test_repeatable():
    samples = torch.randn(100, 3)
    results = []
    for _ in range(2):
        torch.manual_seed(4)
        results.append(kmeans(samples, 10).codes)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("shape", "num_codes", "iterations", "message"),
    [
        ((0, 3), 2, 5, r"samples must be \[n >= 1, D\], got \[0, 3\]"),
        ((4,), 2, 5, r"got \[4\]"),
        ((4, 3), 0, 5, "at least 1, got 0 and 5"),
        ((4, 3), 2, 0, "at least 1, got 2 and 0"),
    ],
)
def test_bad_arguments(shape, num_codes, iterations, message):
    with pytest.raises(ValueError, match=message):
        kmeans(torch.zeros(shape), num_codes, iterations)


def images(samples: torch.Tensor, side: int) -> torch.Tensor:
    """Rows [B * side * side, D] as feature maps [B, D, side, side]."""
    return samples.view(-1, side, side, samples.shape[1]).movedim(-1, 1)


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_codes_lie_at_the_data_from_the_deciding_batch_on(learning):
    samples, centres = blobs(4, 64)
    batches = images(samples, 4).split(4)  # 64 vectors each
    quantizer = VectorQuantizer(
        8, 3, learning=learning, decay=0.9, kmeans_init=True, kmeans_samples=128
    )
    start = quantizer.codebook.detach().clone()
    first = quantizer(batches[0])
    assert not quantizer.kmeans.done
    assert not quantizer.kmeans.initted
    assert quantizer.kmeans.samples.shape == (64, 3)
    if learning == "gradient":
        assert torch.equal(quantizer.codebook, start)
    second = quantizer(batches[1])
    assert quantizer.kmeans.done
    assert quantizer.kmeans.initted
    assert quantizer.kmeans.samples.shape == (0, 3)
    assert torch.cdist(centres, quantizer.codebook).amin(1).max() < 0.1
    assert second[0] < 1e-3 * first[0]
    # The averages belong to the new codes: nothing pulls them back to the old ones.
    quantizer(batches[2])
    assert torch.cdist(centres, quantizer.codebook).amin(1).max() < 0.1
    settled = quantizer.codebook.detach().clone()
    if learning == "gradient":
        quantizer(batches[3] + 50)
        assert torch.equal(quantizer.codebook, settled), "it fired again"


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_vectors_pass_while_samples_are_collected(learning):
    quantizer = VectorQuantizer(8, 3, learning=learning, kmeans_init=True, kmeans_samples=128)
    batches = images(torch.randn(192, 3), 4).split(4)
    start = quantizer.codebook.detach().clone()  # averages move behind the search
    z = batches[0].clone().requires_grad_()
    loss, z_q, _, _, indices = quantizer(z)
    assert torch.equal(z_q, z)
    z_q.mul_(3)
    assert not torch.equal(z_q, z)
    (loss + z_q.sum()).backward()
    alone = batches[0].clone().requires_grad_()
    codes = start[indices.view(4, 4, 4)].movedim(-1, 1)
    (quantizer.commitment_weight * (alone - codes).square().mean()).backward()
    torch.testing.assert_close(z.grad, alone.grad + 3)
    codes_of_eval = quantizer.eval()(batches[0])[1]
    assert not torch.equal(codes_of_eval, batches[0])
    quantizer.train()
    for batch in batches[1:]:
        assert not torch.equal(quantizer(batch)[1], batch)


def test_averages_after_it_are_those_of_a_batch():
    quantizer = VectorQuantizer(
        4, 3, learning="ema", decay=0.999999, kmeans_init=True, kmeans_samples=256
    )
    for batch in images(torch.randn(256, 3), 4).split(4):
        quantizer(batch)
    # 64 vectors a batch, though k-means counted 256.
    assert quantizer.ema.cluster_size.sum().item() == pytest.approx(64, rel=0.01)


def test_default_number_of_samples_and_surplus():
    quantizer = VectorQuantizer(8, 3, kmeans_init=True)
    assert quantizer.kmeans.num_samples == 32
    z = torch.randn(2, 3, 8, 8)
    collected = []
    quantizer.kmeans.num_samples = 33
    quantizer(z[:1, :, :4, :8])
    collected.append(quantizer.kmeans.samples)
    assert torch.equal(collected[0], z[:1, :, :4, :8].movedim(1, -1).reshape(-1, 3))
    quantizer(z)
    assert quantizer.kmeans.done


def test_never_in_eval_nor_for_an_empty_batch():
    quantizer = VectorQuantizer(8, 3, kmeans_init=True, kmeans_samples=16).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.randn(4, 3, 4, 4))
    quantizer.train()(torch.randn(0, 3, 4, 4))
    assert not quantizer.kmeans.done
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_samples_that_are_not_finite_are_left_out():
    init = KMeansInit(2, 3, 10, 5)
    z = torch.randn(6, 3)
    z[1, 2], z[4, 0] = torch.nan, torch.inf
    assert init.collect(z) is None
    assert torch.equal(init.samples, z[[0, 2, 3, 5]])


@pytest.mark.parametrize("saved_after", [1, 3])
def test_checkpoint_continues_where_it_stopped(saved_after):
    batches = torch.randn(5, 2, 3, 4, 4)
    options = {"learning": "ema", "kmeans_init": True, "kmeans_samples": 80}
    whole = VectorQuantizer(6, 3, **options)
    for i in range(saved_after):
        torch.manual_seed(i)
        whole(batches[i])
    resumed = VectorQuantizer(6, 3, **options)
    assert not resumed.kmeans.done
    resumed.load_state_dict(whole.state_dict())
    resumed.kmeans.samples = whole.kmeans.samples
    assert resumed.kmeans.done is whole.kmeans.done is (saved_after == 3)
    assert len(resumed.kmeans.samples) == (32 if saved_after == 1 else 0)
    for i in range(saved_after, 5):
        for quantizer in (whole, resumed):
            torch.manual_seed(i)
            quantizer(batches[i])
    assert whole.kmeans.done
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_checkpoint_before_loads_over_a_finished_one():
    fresh = VectorQuantizer(6, 3, kmeans_init=True)
    finished = VectorQuantizer(6, 3, kmeans_init=True)
    finished.set_codebook(torch.randn(6, 3))
    assert finished.kmeans.done
    finished.load_state_dict(fresh.state_dict())
    assert not finished.kmeans.done


@pytest.mark.parametrize(
    "options", [{"learning": "ema"}, {"kmeans_init": True}, {"dead_code_threshold": 0.1}]
)
def test_loading_its_own_tensors_changes_nothing(options):
    """As after torch.distributed.checkpoint.load, which reads into a module's own tensors."""
    quantizer = VectorQuantizer(16, 3, **options)
    quantizer(5 * torch.randn(2, 3, 2, 2))
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.load_state_dict(quantizer.state_dict())
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_checkpoint_without_the_samples_collects_anew():
    options = {"kmeans_init": True, "kmeans_samples": 80}
    stopped, resumed = VectorQuantizer(6, 3, **options), VectorQuantizer(6, 3, **options)
    for quantizer in (stopped, resumed):
        quantizer(torch.randn(2, 3, 4, 4))
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.kmeans.samples.shape == (0, 3)
    for _ in range(3):
        resumed(torch.randn(2, 3, 4, 4))
    assert resumed.kmeans.done


def test_an_older_checkpoint_holds_the_samples():
    options = {"kmeans_init": True, "kmeans_samples": 80}
    stopped, resumed = VectorQuantizer(6, 3, **options), VectorQuantizer(6, 3, **options)
    stopped(torch.randn(2, 3, 4, 4))
    older = stopped.state_dict() | {"kmeans.samples": stopped.kmeans.samples}
    resumed.load_state_dict(older)
    assert torch.equal(resumed.kmeans.samples, stopped.kmeans.samples)


@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_an_averaged_model_follows_through_the_collection(learning, use_buffers):
    quantizer = VectorQuantizer(6, 3, learning=learning, kmeans_init=True, kmeans_samples=80)
    averaged = torch.optim.swa_utils.AveragedModel(
        quantizer, avg_fn=lambda old, new, number: new, use_buffers=use_buffers
    )
    for _ in range(4):
        quantizer(torch.randn(2, 3, 4, 4))
        averaged.update_parameters(quantizer)
        copied = averaged.module.state_dict()
        for name, value in quantizer.state_dict().items():
            copied[name].copy_(value)  # as a teacher is updated by hand
    assert quantizer.kmeans.done
    assert averaged.module.kmeans.done
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(averaged.module.eval()(x)[4], quantizer.eval()(x)[4])


def test_a_copy_collects_for_itself():
    quantizer = VectorQuantizer(6, 3, kmeans_init=True, kmeans_samples=80)
    quantizer(torch.randn(2, 3, 4, 4))
    for other in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(other.kmeans.samples, quantizer.kmeans.samples)
        for _ in range(2):
            other(torch.randn(2, 3, 4, 4))
        assert other.kmeans.done
        assert not quantizer.kmeans.done
        assert len(quantizer.kmeans.samples) == 32


def test_made_on_the_meta_device_it_collects():
    options = {"kmeans_init": True, "kmeans_samples": 32}
    with torch.device("meta"):
        quantizer = VectorQuantizer(6, 3, **options)
    quantizer.to_empty(device="cpu")
    quantizer.load_state_dict(VectorQuantizer(6, 3, **options).state_dict())
    quantizer(torch.randn(2, 3, 4, 4))
    assert quantizer.kmeans.done


def test_loading_other_parts_of_a_model_keeps_the_samples():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), VectorQuantizer(6, 3, kmeans_init=True))
    model[1](torch.randn(1, 3, 2, 4))
    model.load_state_dict(torch.nn.Sequential(torch.nn.Linear(1, 1)).state_dict(), strict=False)
    assert len(model[1].kmeans.samples) == 8


@pytest.mark.parametrize("learning", ["gradient", "ema"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpointed_step_collects_its_batch_once(learning, use_reentrant):
    whole = VectorQuantizer(6, 3, learning=learning, kmeans_init=True, kmeans_samples=80)
    again = copy.deepcopy(whole)
    for step in range(4):
        x = torch.randn(2, 3, 4, 4)
        sides = []
        for quantizer in (whole, again):
            torch.manual_seed(step)
            leaf = x.clone().requires_grad_()

            def call(x, quantizer=quantizer):
                return quantizer(x)[:2]

            if quantizer is again:
                result = checkpoint(call, leaf, use_reentrant=use_reentrant)
            else:
                result = call(leaf)
            samples = len(quantizer.kmeans.samples)
            (result[0] + result[1].square().sum()).backward()
            assert len(quantizer.kmeans.samples) == samples
            sides.append((result, leaf.grad))
        if learning == "gradient":  # averages take in a batch that is computed twice twice
            torch.testing.assert_close(*sides)
    assert whole.kmeans.done
    assert again.kmeans.done


def test_one_backward_pass_after_the_step_that_ends_the_collection():
    quantizer = VectorQuantizer(6, 3, kmeans_init=True, kmeans_samples=40)
    losses = [quantizer(torch.randn(2, 3, 4, 4, requires_grad=True))[0] for _ in range(3)]
    assert quantizer.kmeans.done
    sum(losses).backward()
    assert quantizer.codebook.grad.any()


def test_a_cleared_buffer_starts_the_collection_again():
    quantizer = VectorQuantizer(6, 3, kmeans_init=True, kmeans_samples=32)
    quantizer(torch.randn(2, 3, 4, 4))
    assert quantizer.kmeans.done
    quantizer.kmeans.initted.fill_(False)
    assert not quantizer.kmeans.done
    quantizer(50 + torch.randn(2, 3, 4, 4))
    assert quantizer.kmeans.done
    assert quantizer.codebook.mean() > 40


@pytest.mark.parametrize("options", [{"learning": "ema"}, {"kmeans_init": True}])
def test_codes_from_a_plain_checkpoint_are_kept(options):
    plain = VectorQuantizer(6, 3)
    plain.set_codebook(torch.randn(6, 3) * 10)
    quantizer = VectorQuantizer(6, 3, **options)
    missing = quantizer.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing, "the checkpoint has all that the module needs"
    quantizer(torch.zeros(2, 3, 4, 4))
    # The EMA step takes the chosen code along; smoothing touches the last digits of the others.
    others = torch.arange(6) != plain.codebook.norm(dim=1).argmin()
    torch.testing.assert_close(
        quantizer.codebook[others], plain.codebook[others], rtol=1e-4, atol=0
    )


def test_dead_codes_right_after_it_are_left_alone():
    quantizer = VectorQuantizer(
        6, 3, learning="ema", kmeans_init=True, kmeans_samples=64, dead_code_threshold=0.5
    )
    quantizer(torch.randn(4, 3, 4, 4))
    codes = quantizer.codebook.clone()
    replace_dead_codes(torch.full((9, 3), 1e6), codes, quantizer.ema, 0.5)
    assert torch.equal(codes, quantizer.codebook)
