import pytest
import torch
from oracle import check

from vqvae_fast import settings

pytestmark = pytest.mark.interpreted

# Tiles are 8 x 48, 8 x 24, 4 x 24, 4 x 12 and 4 x 8 (rows x codes), blocks 64 to 128 rows, passes
# 1024 panels: every size here is off all of them. 4099 is a row longer than a block of the L1.
SHAPES = [
    (1, 1, 1),
    (1, 49, 8),
    (5, 1, 3),
    (7, 23, 1),
    (9, 25, 2),
    (63, 47, 5),
    (65, 97, 9),
    (131, 145, 17),
    (261, 515, 64),
    (67, 7, 300),
    (9, 50, 600 if settings.current.triton_interprets else 4099),
]
SEVERAL_PASSES = [(5, 8195, 2), (3, 50001, 3)]


def random_pair(rows, codes, dim, dtype):
    return torch.randn(rows, dim).to(dtype), torch.randn(codes, dim).to(dtype)


@pytest.mark.quick(interpreted=6)
@pytest.mark.parametrize(("rows", "codes", "dim"), SHAPES)
def test_shapes(implementation, dtype, rows, codes, dim):
    z, codebook = random_pair(rows, codes, dim, dtype)
    check(implementation.nearest_code(z, codebook), z, codebook)


@pytest.mark.parametrize(("rows", "codes", "dim"), SEVERAL_PASSES)
def test_more_codes_than_one_pass_takes(implementation, dtype, rows, codes, dim):
    z, codebook = random_pair(rows, codes, dim, dtype)
    z[0] = codebook[-1]
    z[1] = codebook[codes // 2]
    check(implementation.nearest_code(z, codebook), z, codebook)


def test_ties_across_passes(implementation, dtype):
    """The same codes again and again: the first of them wins in whichever pass the next lies."""
    # More codes than the CPU's kernels take at once; fewer where an interpreter takes its time.
    copies = 130 if settings.current.triton_interprets else 1221
    codebook = torch.randn(41, 2).to(dtype).repeat(copies, 1)
    z = torch.cat([codebook[:41], torch.randn(7, 2).to(dtype)])
    result = implementation.nearest_code(z, codebook)
    check(result, z, codebook)
    assert result[0].max() < 41
    assert torch.equal(result[0][:41], torch.arange(41))


def test_rows_too_long_for_float32_scores(implementation, monkeypatch):
    dim = 170_000
    if settings.current.triton_interprets:  # which takes its time
        dim = 1100
        monkeypatch.setattr("vqvae_fast.backends.triton.search_launches.LONGEST_ROW", 1000)
    z, codebook = torch.randn(3, dim), torch.randn(5, dim)
    codebook[3] = codebook[1]
    z[1] = codebook[3]
    result = implementation.nearest_code(z, codebook)
    check(result, z, codebook)
    assert result[0][1] == 1


def test_books(implementation, dtype):
    z, codebook = torch.randn(3, 4, 5, 7).to(dtype), torch.randn(3, 29, 7).to(dtype)
    result = implementation.nearest_code(z, codebook)
    check(result, z, codebook)
    for h in range(3):
        alone = implementation.nearest_code(z[h], codebook[h])
        assert torch.equal(result[0][h], alone[0])
        assert torch.equal(result[1][h], alone[1])


def test_books_of_single_rows(implementation):
    z, codebook = torch.randn(3, 7), torch.randn(3, 29, 7)
    check(implementation.nearest_code(z, codebook), z, codebook)


def test_a_single_vector(implementation, dtype):
    z, codebook = torch.randn(6).to(dtype), torch.randn(11, 6).to(dtype)
    indices, distances = implementation.nearest_code(z, codebook)
    assert indices.shape == distances.shape == ()
    check((indices[None], distances[None]), z[None], codebook)


@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 5), (3, 0, 5)])
def test_an_empty_batch(implementation, dtype, shape):
    z, codebook = torch.randn(shape).to(dtype), torch.randn(7, 5).to(dtype)
    indices, distances = implementation.nearest_code(z, codebook)
    assert indices.shape == distances.shape == shape[:-1]
    quantized, indices, distances = implementation.quantize(z, codebook)
    assert quantized.shape == shape
    assert quantized.dtype == dtype


# What the caller may hand over as z [..., 6]; none of it is changed.
LAYOUTS = {
    "transposed": lambda: torch.randn(6, 70).T,
    "every second element": lambda: torch.randn(70, 12)[:, ::2],
    "every third row": lambda: torch.randn(210, 6)[::3],
    "columns of a wider matrix": lambda: torch.randn(70, 9)[:, 2:8],
    "feature map": lambda: torch.randn(3, 6, 5, 7).movedim(1, -1),
    "channels_last feature map": lambda: (
        torch.randn(3, 6, 5, 7).to(memory_format=torch.channels_last).movedim(1, -1)
    ),
    "cropped feature map": lambda: torch.randn(3, 6, 9, 9)[:, :, 1:6, 2:9].movedim(1, -1),
    "every order of strides": lambda: torch.randn(4, 6, 3, 5).permute(2, 0, 3, 1),
    "expanded rows": lambda: torch.randn(1, 6).expand(70, 6),
    "expanded batch": lambda: torch.randn(1, 10, 6).expand(7, 10, 6),
    "expanded elements": lambda: torch.randn(70, 1).expand(70, 6),
    "one number": lambda: torch.randn(1, 1).expand(70, 6),
    "one between many, of any stride": lambda: torch.randn(1, 3, 4, 5, 6).transpose(0, 1),
    "dimensions of one": lambda: torch.randn(1, 70, 1, 6).as_strided((1, 70, 1, 6), (3, 6, 1, 1)),
    "overlapping windows": lambda: torch.randn(80).unfold(0, 6, 1),
    "negated view": lambda: torch.complex(torch.randn(70, 6), torch.randn(70, 6)).conj().imag,
    "offset storage": lambda: torch.randn(71 * 6 + 1)[7:].view(70, 6),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_z(implementation, layout):
    z, codebook = LAYOUTS[layout](), torch.randn(53, 6)
    before = z.clone()
    result = implementation.nearest_code(z, codebook)
    check(result, z, codebook)
    plain = implementation.nearest_code(z.contiguous(), codebook)
    assert torch.equal(result[0], plain[0])
    assert torch.equal(result[1], plain[1])

    quantized, indices, distances = implementation.quantize(z, codebook)
    assert torch.equal(quantized, codebook[plain[0]])
    assert quantized.stride() == torch.empty_like(z).stride()
    assert torch.equal(indices, plain[0])
    assert torch.equal(distances, plain[1])
    assert torch.equal(z, before)


@pytest.mark.parametrize("layout", ["transposed", "feature map", "expanded rows", "one number"])
def test_layouts_in_every_dtype(implementation, dtype, layout):
    z, codebook = LAYOUTS[layout]().to(dtype), torch.randn(53, 6).to(dtype)
    check(implementation.nearest_code(z, codebook), z, codebook)
    quantized, indices, _ = implementation.quantize(z, codebook)
    assert torch.equal(quantized, codebook[indices])


@pytest.mark.parametrize(
    "layout",
    [
        lambda: torch.randn(6, 53).T,
        lambda: torch.randn(106, 13)[::2, 1::2],
        lambda: torch.randn(1, 6).expand(53, 6),
        lambda: torch.randn(53, 1).expand(53, 6),
        lambda: torch.randn(1, 1).expand(53, 6),
        lambda: torch.randn(6, 53, 2)[..., 0].T,
    ],
)
def test_layouts_of_the_codebook(implementation, dtype, layout):
    codebook, z = layout().to(dtype), torch.randn(70, 6).to(dtype)
    check(implementation.nearest_code(z, codebook), z, codebook)
    quantized, indices, _ = implementation.quantize(z, codebook)
    assert torch.equal(quantized, codebook[indices])


def test_layouts_of_books(implementation):
    z = torch.randn(7, 4, 3, 5).permute(2, 0, 1, 3)
    codebook = torch.randn(29, 3, 5).movedim(1, 0)
    check(implementation.nearest_code(z, codebook), z, codebook)
    quantized, indices, _ = implementation.quantize(z, codebook)
    for h in range(3):
        assert torch.equal(quantized[h], codebook[h][indices[h]])


def test_the_inputs_stay_as_they_are(implementation, dtype):
    z, codebook = random_pair(70, 53, 6, dtype)
    before = z.clone(), codebook.clone()
    implementation.quantize(z, codebook)
    assert torch.equal(z, before[0])
    assert torch.equal(codebook, before[1])


def test_rows_keep_apart_from_one_pass_to_the_next(implementation):
    """Odd rows have ties to settle in the first pass, which takes their neighbours' places."""
    rows = 30
    z, codebook = torch.randn(rows, 2), 50 * torch.nn.functional.normalize(torch.randn(50_000, 2))
    codebook[:rows] = z + 0.01
    odd = torch.arange(1, rows, 2)
    codebook[odd + 4800] = codebook[odd]  # 4800: the same lane of every tile
    codebook[-rows:] = z
    indices, distances = implementation.nearest_code(z, codebook)
    assert torch.equal(indices, torch.arange(50_000 - rows, 50_000))
    assert (distances == 0).all()


@pytest.mark.parametrize("codes", [1, 3, 25, 101])
@pytest.mark.parametrize("scale", [1e-310, 1e-160, 1e-30, 1.0, 1e30, 1e200])
def test_nothing_behind_the_codebook_is_chosen(implementation, codes, scale):
    """Behind it, where the last tile is padded, lie the very vectors that are looked for."""
    z = scale * torch.randn(30, 4, dtype=torch.float64)
    memory = torch.cat([scale * torch.randn(codes, 4, dtype=torch.float64), z, z])
    check(implementation.nearest_code(z, memory[:codes]), z, memory[:codes])
    if scale < 1e38:
        z, memory = z.float(), memory.float()
        check(implementation.nearest_code(z, memory[:codes]), z, memory[:codes])
