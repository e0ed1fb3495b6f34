"""The drop-in quantizers beside vector-quantize-pytorch's: the same state, draws and calls.

python tests/fuzz/against_the_peer.py --seconds 600
"""

import contextlib
import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import campaign
import known
import quantizers
import torch
import vector_quantize_pytorch as peer
from loguru import logger
from torch import Tensor, nn

import vqvae_fast

logger.disable("vector_quantize_pytorch")  # its warnings of k-means with few vectors

# The same float64 numbers, but for the order of additions; float32 as in the tests of parity.
TOLERANCES = {torch.float64: (1e-7, 1e-9), torch.float32: (2e-3, 2e-4)}


@contextlib.contextmanager
def _float_means_double() -> Iterator[None]:
    """The peer casts all vectors to float32; here, within a float64 case, it must not."""
    original = Tensor.float
    Tensor.float = lambda tensor: tensor.double()  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Tensor.float = original  # type: ignore[method-assign]


@dataclass
class Step:
    """One call of both modules."""

    shape: tuple[int, ...]
    arguments: dict[str, Any]
    training: bool
    needs_gradient: bool
    optimizes: bool
    round_trip: bool
    seed: int

    def __str__(self) -> str:
        words = [f"{name}={_short(value)}" for name, value in self.arguments.items()]
        words += [] if self.training else ["eval"]
        words += [] if self.needs_gradient else ["no gradient"]
        words += ["after a state_dict round trip"] if self.round_trip else []
        return f"{list(self.shape)} {' '.join(words)}".strip()


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor{list(value.shape)}"
    return (
        getattr(value, "func", value).__name__
        if callable(value) and not isinstance(value, nn.Module)
        else repr(value)
    )


@dataclass
class Side:
    """What one module has made of a step: tensors by name, or what it raised."""

    tensors: dict[str, Tensor | None] = field(default_factory=dict)
    error: Exception | None = None


@dataclass
class Comparison:
    """Both modules through several steps."""

    name: str
    options: dict[str, Any]
    steps: list[Step]
    dtype: torch.dtype
    data: str
    seed: int

    def __str__(self) -> str:
        words = [f"{name}={_short(value)}" for name, value in self.options.items()]
        steps = "; ".join(str(step) for step in self.steps)
        return f"{self.name}({', '.join(words)}), {self.dtype}, {self.data} data: {steps}"

    def run(self) -> str:
        made = [self._made(getattr(library, self.name)) for library in (peer, vqvae_fast)]
        if any(isinstance(one, Exception) for one in made):
            if isinstance(made[1], Exception) and isinstance(made[0], nn.Module):
                made[0] = self._fails(made[0]) or made[0]
            return self._one_refuses(0, made)
        theirs, ours = made
        assert isinstance(theirs, nn.Module)
        assert isinstance(ours, nn.Module)
        ours.load_state_dict(theirs.state_dict())
        optimizers = [_optimizer(module) for module in (theirs, ours)]
        for number, step in enumerate(self.steps):
            if step.round_trip:
                theirs, ours = self._reloaded(theirs), self._reloaded(ours)
                optimizers = [_optimizer(module) for module in (theirs, ours)]
            x = self._input(step)
            before = {key: value.clone() for key, value in ours.state_dict().items()}
            with self._as_wide(), _recorded_distances(theirs) as searched:
                right = _taken(theirs, step, x, optimizers[0])
            got = _taken(ours, step, x, optimizers[1])
            if right.error is not None or got.error is not None:
                if isinstance(got.error, (ValueError, TypeError)) and not self._untouched(
                    ours, before
                ):
                    raise AssertionError(
                        f"step {number} was refused, but changed the state: {got.error}"
                    )
                return self._one_refuses(number, [right.error, got.error])
            different = self._differences(right, got)
            if different:
                if self.dtype == torch.float32 and known.near_tie(
                    searched, right.tensors, got.tensors
                ):
                    return "a near tie in float32"
                return self._judged(different, number)
        return "agrees"

    def _as_wide(self) -> contextlib.AbstractContextManager[None]:
        return _float_means_double() if self.dtype == torch.float64 else contextlib.nullcontext()

    def _made(self, which: type[nn.Module]) -> nn.Module | Exception:
        torch.manual_seed(self.seed)
        try:
            return which(**copy.deepcopy(self.options)).to(self.dtype)
        except Exception as error:
            return error

    def _fails(self, module: nn.Module) -> Exception | None:
        """What the peer raises at a call, where the arguments contradict each other already."""
        optimizer = _optimizer(module)
        for step in self.steps:
            taken = _taken(module, step, self._input(step), optimizer)
            if taken.error is not None:
                return taken.error
        return None

    def _reloaded(self, module: nn.Module) -> nn.Module:
        """Another module of this kind, in the same state."""
        other = self._made(type(module))
        assert isinstance(other, nn.Module)
        other.load_state_dict(module.state_dict())
        return other

    def _input(self, step: Step) -> Tensor:
        numbers = torch.Generator().manual_seed(step.seed)
        x = torch.randn(step.shape, generator=numbers, dtype=torch.float64)
        if self.data == "offset":
            x += 5
        elif self.data == "small":
            x *= 0.01
        elif self.data == "repeated":
            x = x[:1].expand_as(x).clone()
        return x.to(self.dtype)

    @staticmethod
    def _untouched(module: nn.Module, before: dict[str, Tensor]) -> bool:
        after = module.state_dict()
        return all(_equal(after[key], value) for key, value in before.items())

    def _one_refuses(self, number: int, outcomes: list[Any]) -> str:
        theirs, ours = (one if isinstance(one, Exception) else None for one in outcomes)
        if theirs and ours:
            return "both refuse"
        error = theirs or ours
        part = "peer raises" if theirs else "we raise"
        return self._judged({part: f"{type(error).__name__}: {error}"}, number)

    def _differences(self, right: Side, got: Side) -> dict[str, str]:
        different: dict[str, str] = {}
        for key in right.tensors.keys() | got.tensors.keys():
            if key not in right.tensors or key not in got.tensors:
                if not key.startswith("state") or "batch_" not in key:
                    different[key] = "is there in one of the two only"
                continue
            a, b = right.tensors[key], got.tensors[key]
            if why := self._difference(a, b):
                different[key] = why
        return different

    def _difference(self, a: Tensor | None, b: Tensor | None) -> str | None:
        if a is None or b is None:
            one = a if b is None else b
            return None if one is None or not one.any() else "None and a gradient"
        if a.shape != b.shape:
            return f"the peer's shape is {list(a.shape)}, ours {list(b.shape)}"
        if a.dtype != b.dtype:
            return f"the peer's dtype is {a.dtype}, ours {b.dtype}"
        rtol, atol = TOLERANCES[self.dtype]
        if a.is_floating_point():
            scale = max(1.0, a.abs().max().item()) if a.numel() and a.isfinite().all() else 1.0
            if torch.allclose(a, b, rtol=rtol, atol=atol * scale, equal_nan=True):
                return None
            worst = (a - b).abs().max().item()
            return f"they differ by up to {worst:.3g} ({_few(a)} and {_few(b)})"
        return None if torch.equal(a, b) else f"{_few(a)} and {_few(b)}"

    def _judged(self, different: dict[str, str], number: int) -> str:
        """The reason why all differences are known; raises where one is not."""
        why = known.reason(self.name, self.options, self.steps[: number + 1], different)
        if why is not None:
            return f"known: {why}"
        listed = "\n".join(f"{part}: {what}" for part, what in sorted(different.items()))
        raise AssertionError(f"step {number} differs\n{listed}")


def _few(tensor: Tensor) -> str:
    numbers = ", ".join(f"{value:.6g}" for value in tensor.flatten()[:4].tolist())
    return f"[{numbers}{', ...' if tensor.numel() > 4 else ''}]"


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.double().nan_to_num(nan=-7.0), b.double().nan_to_num(nan=-7.0))


def _optimizer(module: nn.Module) -> torch.optim.Optimizer | None:
    parameters = list(module.parameters())
    return torch.optim.SGD(parameters, 0.05) if parameters else None


@contextlib.contextmanager
def _recorded_distances(module: nn.Module) -> Iterator[list[Tensor]]:
    """The distances that each of the peer's searches has compared, in the order of the calls."""
    found: list[Tensor] = []
    books = {id(m): m for m in module.modules() if type(m).__name__ == "Codebook"}.values()
    handles = [
        book.register_forward_hook(lambda _m, _i, out: found.append(out[2].detach()))
        for book in books
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _taken(
    module: nn.Module, step: Step, x: Tensor, optimizer: torch.optim.Optimizer | None
) -> Side:
    """The step, forward, backward and the optimizer's."""
    module.train(step.training)
    x = x.clone().requires_grad_(step.needs_gradient)
    torch.manual_seed(step.seed)
    side = Side()
    try:
        out = module(x, **{name: _like(value, x) for name, value in step.arguments.items()})
        results = dict(_named(out, "indices" in step.arguments))
        side.tensors |= {f"result {key}": value.detach().clone() for key, value in results.items()}
        total = _scalar(results)
        if total is not None and total.requires_grad:
            total.backward()
        side.tensors["gradient of x"] = x.grad
        for name, parameter in module.named_parameters():
            gradient = parameter.grad
            side.tensors[f"gradient of {name}"] = None if gradient is None else gradient.clone()
        if optimizer is not None and step.optimizes:
            optimizer.step()
        module.zero_grad()
        for name, value in module.state_dict().items():
            side.tensors[f"state {name}"] = value.clone()
        if "indices" in results and not step.training and step.arguments.get("topk") is None:
            side.tensors |= _decoded(module, results["indices"])
    except Exception as error:
        side.error = error
    return side


def _like(argument: Any, x: Tensor) -> Any:
    """A copy of the argument, in x's dtype if it is a tensor of floats."""
    if isinstance(argument, Tensor):
        return argument.to(x.dtype, copy=True) if argument.is_floating_point() else argument.clone()
    return argument


def _decoded(module: nn.Module, indices: Tensor) -> dict[str, Tensor]:
    methods = ("get_codes_from_indices", "get_output_from_indices", "indices_to_codes")
    return {
        f"result of {method}": getattr(module, method)(indices).detach()
        for method in methods
        if hasattr(module, method)
    }


def _named(out: Any, with_targets: bool) -> Iterator[tuple[str, Tensor]]:
    if isinstance(out, Tensor):
        yield "indices", out
        return
    names = ("quantized", "loss") if with_targets else ("quantized", "indices", "loss", "more")
    for name, value in zip(names, out, strict=False):
        if isinstance(value, Tensor):
            yield name, value
        else:
            fields = getattr(value, "_fields", range(len(value)))
            yield from ((f"{name} {key}", part) for key, part in zip(fields, value, strict=True))


def _scalar(results: dict[str, Tensor]) -> Tensor | None:
    if "quantized" not in results:
        return None
    quantized = results["quantized"]
    weight = torch.linspace(0, 1, quantized.numel(), dtype=quantized.dtype).view(quantized.shape)
    return 0.1 * (quantized * weight).sum() + 2 * results["loss"].sum()


def draw(choices: random.Random) -> Comparison:
    """A case of a few small steps."""
    (name,) = choices.choices(list(quantizers.CLASSES), quantizers.WEIGHTS)
    options = quantizers.CLASSES[name](choices)
    steps = []
    modes = choices.choice([(True,), (True, True, True), (False,), (True, False, True, False)])
    for number, training in enumerate(modes):
        shape = quantizers.shape(options, choices)
        steps.append(
            Step(
                shape,
                quantizers.call(name, options, shape, choices),
                training,
                choices.random() < 0.85,
                choices.random() < 0.8,
                number > 0 and choices.random() < 0.2 and "affine_param" not in options,
                choices.randrange(2**31),
            )
        )
    dtype = choices.choice([torch.float64, torch.float64, torch.float32])
    if not known.tells_near_ties(name, options, steps):
        dtype = torch.float64
    data = choices.choice(["Gaussian"] * 5 + ["offset", "small", "repeated"])
    return Comparison(name, options, steps, dtype, data, choices.randrange(2**31))


FUZZER = campaign.Fuzzer(__file__, draw)

if __name__ == "__main__":
    campaign.main(FUZZER, __doc__)
