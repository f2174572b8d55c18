"""What can be seen of a model from outside: outputs, gradients, parameters; and a few steps of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..tensors import plain_tensors

if TYPE_CHECKING:
    from torch import Tensor

Snapshot = dict[str, "Tensor"]


def token_ids(rows: int = 2, length: int = 9, vocabulary: int = 512) -> Tensor:
    """int64[batch seq], always the same random tokens."""
    import torch

    return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(3))


def logits(model: Any) -> Tensor:
    """float32[batch seq vocab], in evaluation mode and without gradients; the model keeps its mode."""
    import torch

    training = model.training
    with torch.no_grad():
        result = model.eval()(input_ids=token_ids()).logits.float()
    model.train(training)
    return result  # type: ignore[no-any-return]


def training_logits(model: Any, seed: int = 0) -> Tensor:
    """float32[batch seq vocab] in training mode, random numbers seeded; the model keeps its mode."""
    import torch

    training = model.training
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        result = model.train()(input_ids=token_ids()).logits.float()
    model.train(training)
    return result  # type: ignore[no-any-return]


def gradients(model: Any, seed: int = 0) -> Snapshot:
    """The gradient of every trainable parameter after one seeded step in training mode; none are left behind."""
    import torch

    training = model.training
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        model.train()(input_ids=token_ids(), labels=token_ids()).loss.backward()
    found = {name: p.grad.detach().clone() for name, p in trainable(model).items() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model.train(training)
    return found


def trainable(model: Any) -> dict[str, Any]:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def snapshot(model: Any) -> Snapshot:
    """A copy of every parameter and buffer by name; of a tensor that wraps others, of each of those."""
    return {
        part: tensor.detach().clone()
        for name, value in (*model.named_parameters(), *model.named_buffers())
        for part, tensor in plain_tensors(name, value)
    }


def same(one: Snapshot, other: Snapshot) -> bool:
    """Whether two snapshots hold the same names with the same bits, NaN equal to itself."""
    import torch

    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def changed(before: Snapshot, after: Snapshot) -> set[str]:
    """The names whose values are no longer bit-identical."""
    import torch

    return {name for name in before if name not in after or not torch.equal(before[name], after[name])}


def train_(
    model: Any, optimizer: Any = None, steps: int = 4, learning_rate: float = 1e-2, seed: int = 0
) -> list[float]:
    """Train what requires a gradient on the same tokens over and over, in place, and return the losses."""
    import torch

    optimizer = optimizer or torch.optim.AdamW(list(trainable(model).values()), lr=learning_rate)
    losses = []
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(input_ids=token_ids(), labels=token_ids()).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    optimizer.zero_grad()
    model.eval()
    return losses
