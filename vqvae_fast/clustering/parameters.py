"""The arguments of an estimator, as scikit-learn reads, writes and copies them."""

import inspect
import numbers
import operator
from typing import TYPE_CHECKING, Any

import torch

from vqvae_fast.clustering.rows import METRICS

if TYPE_CHECKING:
    from sklearn.utils import Tags

_INITS = ("k-means++", "random")


class Parameters:
    """A class whose ``__init__`` only stores its arguments under their names.

    That is what ``sklearn.base.clone``, pipelines and searches of parameters need.
    """

    _estimator_type = "clusterer"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments of the class by name; ``deep`` makes no difference."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names}

    def set_params(self, **params: Any) -> "Parameters":
        """Set arguments of the class by name, and return self.

        Raises:
            ValueError: there is no such argument.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"parameters must be among {', '.join(known)}, got {name!r}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        """The class with the arguments that are not the default ones."""
        defaults = inspect.signature(type(self).__init__).parameters
        given = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not defaults[name].default
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    def __sklearn_tags__(self) -> "Tags":
        """What scikit-learn, which alone calls this, wants to know about an estimator."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="clusterer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=["float64", "float32"]),
            input_tags=InputTags(),
        )


def check_choices(
    n_clusters: Any,
    metric: Any,
    init: Any,
    n_init: Any,
    max_iter: Any,
    tol: Any,
    random_state: Any,
    init_size: Any,
) -> None:
    """Raise a TypeError or ValueError for arguments of k-means that make no sense."""
    at_least("n_clusters", n_clusters, 1)
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    choices = f"init must be one of {', '.join(_INITS)}, or the codes"
    if isinstance(init, str) and init not in _INITS:
        raise ValueError(f"{choices}, got {init!r}")
    if init is None or callable(init):
        raise TypeError(f"{choices}, got {init!r}")
    if n_init != "auto":
        at_least("n_init", n_init, 1)
    at_least("max_iter", max_iter, 1)
    if not isinstance(tol, numbers.Real):
        raise TypeError(f"tol must be a number, got {tol!r}")
    if not float(tol) >= 0:
        raise ValueError(f"tol must be at least 0, got {tol}")
    check_random_state(random_state)
    if init_size is not None:
        at_least("init_size, which must not be less than n_clusters,", init_size, n_clusters)


def check_random_state(random_state: Any) -> None:
    """Raise unless it is None, a ``torch.Generator`` or a whole number from 0 to 2**63 - 1."""
    if random_state is None or isinstance(random_state, torch.Generator):
        return
    allowed = "random_state must be an integer from 0 to 2**63 - 1, a torch.Generator or None"
    try:
        seed = operator.index(random_state)
    except TypeError:
        raise TypeError(f"{allowed}, got {random_state!r}") from None
    if not 0 <= seed < 2**63:
        raise ValueError(f"{allowed}, got {seed}")


def at_least(name: str, number: Any, smallest: int) -> int:
    """Return a whole number.

    Raises:
        TypeError: it is none.
        ValueError: it is smaller.
    """
    try:
        whole = operator.index(number)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {number!r}") from None
    if whole < smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {whole}")
    return whole
