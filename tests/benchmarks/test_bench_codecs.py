"""The benchmark of codecs' quantizers: a smoke run of all, and who is right where codes differ."""

import copy
import json

import pytest
import torch

import vqvae_fast
from benchmarks import codecs, cpu_time
from vqvae_fast import ResidualVQ
from vqvae_fast.bench.peers.base import needs

pytestmark = pytest.mark.skipif(
    needs("transformers", "transformers")() is not None, reason="transformers is not installed"
)


def test_smoke_run_of_every_codec(tmp_path, capsys):
    out = tmp_path / "codecs.json"
    threads = torch.get_num_threads()
    codecs.main(["--quick", "--json", str(out)])
    assert torch.get_num_threads() == threads
    record, table = json.loads(out.read_text()), capsys.readouterr().out
    rows = [(codec, frames) for codec in codecs.CODECS for frames in codecs.QUICK_FRAMES]
    for entry, (codec, frames) in zip(record["results"], rows, strict=True):
        assert (entry["codec"], entry["frames"]) == (codec.name, frames)
        names = set(codecs.TIMED) - ({"transformers, both"} if codec.decode is None else set())
        names -= set() if codec.projects else {"ours, composed"}
        assert set(entry["contenders"]) == names
        first = "ours, composed" if codec.projects else "ours, frozen"
        assert entry["contenders"][first]["times_slower_than_ours"]["median"] == 1
        assert entry["packed_bytes"] > 0
        assert set(entry["agreement"]) == {"frozen"} | ({"composed"} if codec.projects else set())
        for judged in entry["agreement"].values():
            assert judged["vectors"] == frames
            assert judged["differ"] == 0
    assert record["threads"] == 1
    assert "transformers" in record["versions"]
    assert all(codec.name in table for codec in codecs.CODECS)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 13, 257])
def test_composed_projections_of_dac_find_its_codes(frames):
    codec, sizes = codecs.CODECS[2], codecs.Sizes(64, 9, 300, 8)
    theirs = codec.build(sizes)
    for stage in theirs.quantizers:  # the benchmark's are zero
        stage.in_proj.bias.normal_()
        stage.out_proj.bias.normal_()
    state = {f"quantizer.{name}": tensor for name, tensor in theirs.state_dict().items()}
    ours = vqvae_fast.load_quantizer(state).eval()
    composed = vqvae_fast.freeze(copy.deepcopy(ours), compose_projections=True)
    x = torch.randn(2, sizes.channels, frames)
    quantized, mine, _ = composed(x.transpose(1, 2))
    assert composed.packed_nbytes > ours.codebooks.nbytes
    judged = codecs.agreement(ours, x.transpose(1, 2), mine, codec.encode(theirs, x))
    assert judged.worst <= codecs._ROUNDING
    same = (mine == codec.encode(theirs, x)).all(dim=-1)
    assert same.float().mean() > 0.9
    wanted = theirs(x)[0].transpose(1, 2)
    torch.testing.assert_close(quantized[same], wanted[same], rtol=1e-4, atol=1e-4)


def test_the_stages_have_something_to_do():
    """Codes of the wrong scale would all be the same one, or differ by rounding alone."""
    for codec in codecs.CODECS:
        sizes = codecs.QUICK_SIZES[codec.name]
        module = codec.build(sizes)
        with torch.no_grad():
            indices = codec.encode(module, torch.randn(1, sizes.channels, 400))
        assert indices.shape == (1, 400, sizes.stages)
        for stage in indices[0].unbind(-1):
            assert len(stage.unique()) > sizes.k // 2


def test_float64_says_who_is_right():
    torch.manual_seed(0)
    module = ResidualVQ(dim=4, num_quantizers=3, codebook_size=16).eval()
    x = torch.randn(1, 10, 4)
    with torch.no_grad():
        right = module(x)[1]
    wrong = right.clone()
    wrong[0, :3, 1] = (wrong[0, :3, 1] + 1) % 16
    assert codecs.agreement(module, x, right, right) == (10, 0, 0, 0, 0.0)
    assert codecs.agreement(module, x, right, wrong)[:4] == (10, 3, 3, 0)
    judged = codecs.agreement(module, x, wrong, right)
    assert judged[:4] == (10, 3, 0, 3)
    assert judged.worst > codecs._ROUNDING


def test_a_wrong_code_of_ours_is_never_timed(monkeypatch):
    codec = codecs.CODECS[1]
    judged = codecs.Agreement(5, 1, 0, 1, 0.1)
    monkeypatch.setattr(codecs, "agreement", lambda *arguments: judged)
    with pytest.raises(cpu_time.WrongCodeError, match="EnCodec, 5 frames, frozen: a code of ours"):
        codecs.compare(codec, codecs.QUICK_SIZES[codec.name], 5, 1, 0.0)
