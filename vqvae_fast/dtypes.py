"""The dtypes of results."""

import torch


def common_float(*dtypes: torch.dtype) -> torch.dtype:
    """The result of ``torch.promote_types`` for float dtypes.

    ``torch.export`` writes a call of ``torch.promote_types`` into its graph, where torch.compile
    refuses it ("torch.* op returned non-Tensor", torch 2.13).
    """
    if len(set(dtypes)) == 1:
        return dtypes[0]
    return torch.float64 if torch.float64 in dtypes else torch.float32


def distance_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the distances for inputs of ``dtype``: float64 stays, all else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
