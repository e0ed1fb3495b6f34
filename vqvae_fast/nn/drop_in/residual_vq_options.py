"""Which of ResidualVQ's arguments go together, and how large the stages' codebooks are."""

from collections.abc import Sequence
from typing import Any

from vqvae_fast.nn.steps.checks import check_one_head, refuse


def sizes_of_stages(codebook_size: int | Sequence[int], stages: int | None) -> tuple[int, ...]:
    """The Q codebook sizes.

    Raises:
        ValueError: there is no stage, or it is not clear how many there are.
    """
    if isinstance(codebook_size, Sequence):
        if stages is not None and stages != len(codebook_size):
            raise ValueError(
                f"num_quantizers={stages}, but there are {len(codebook_size)} codebook sizes"
            )
        sizes = tuple(codebook_size)
    elif stages is None:
        raise ValueError("num_quantizers must be given, or codebook_size as a tuple or list")
    else:
        sizes = (codebook_size,) * stages
    if not sizes:
        raise ValueError("num_quantizers must be at least 1, got 0")
    return sizes


def check(given: dict[str, Any], sizes: tuple[int, ...]) -> None:
    """Raise for a number out of range, and for arguments that contradict each other.

    Args:
        given: the constructor's arguments by name, with those for the stages.
        sizes: of the stages' codebooks.

    Raises:
        ValueError: says which, and why.
    """
    beam_size, eval_beam_size = given["beam_size"], given["eval_beam_size"]
    weights = given["beam_score_quantizer_weights"]
    shared_codebook, project_per_stage = given["shared_codebook"], given["project_per_stage"]
    implicit_neural_codebook = given["implicit_neural_codebook"]
    heads, quant_grad_frac = given["heads"], given["quant_grad_frac"]
    check_one_head(heads)
    refuse(
        (
            shared_codebook and len(set(sizes)) > 1,
            f"shared_codebook needs equal codebook sizes, got {sizes}",
        ),
        (
            eval_beam_size is not None and beam_size is None,
            "eval_beam_size needs beam_size",
        ),
        (
            (beam_size is not None and beam_size < 1)
            or (eval_beam_size is not None and eval_beam_size < 1),
            f"beam sizes must be at least 1, got {beam_size} and {eval_beam_size}",
        ),
        (
            weights is not None and len(weights) != len(sizes),
            f"beam_score_quantizer_weights must be {len(sizes)} numbers",
        ),
        (
            given.get("layernorm_after_project_in", False) and not project_per_stage,
            "layernorm_after_project_in needs project_per_stage: the stages have no linear "
            "layer that it could follow",
        ),
        (
            max(beam_size or 1, eval_beam_size or 1) > 1 and bool(given.get("cosine_search")),
            "beam search does not go with cosine_search",
        ),
        *(
            (
                (beam_size or 1) > 1 and given.get(name) not in (None, False),
                f"beam search in training does not go with {name}; for eval alone give "
                "beam_size=1 and eval_beam_size",
            )
            for name in ("in_place_codebook_optimizer", "commitment_use_cross_entropy_loss")
        ),
        (
            not 0 <= quant_grad_frac <= 1,
            f"quant_grad_frac must be in [0, 1], got {quant_grad_frac!r}",
        ),
        (
            bool(given["mlp_kwargs"]) and not implicit_neural_codebook,
            "mlp_kwargs need implicit_neural_codebook: there is no MLP",
        ),
        (
            project_per_stage and shared_codebook,
            "project_per_stage and shared_codebook exclude "
            "each other: the stages' codes lie in different spaces",
        ),
        (
            project_per_stage and implicit_neural_codebook,
            "project_per_stage and "
            "implicit_neural_codebook exclude each other: the condition has no projection",
        ),
    )
