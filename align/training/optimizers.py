"""AdamW with decay on matrices only, Muon for hidden matrices, and learning-rate factors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from align.configs import Pretrain, TextToText


def adamw(
    model: torch.nn.Module,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    but_not: Iterable[torch.nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Return AdamW without decay on biases and gains [GPT-3, appendix B].

    Args:
        but_not: parameters that it leaves out.
    """
    left_out = set(but_not)
    parameters = [p for p in model.parameters() if p.requires_grad and p not in left_out]
    return adamw_for(parameters, learning_rate, betas, weight_decay, eps)


def adamw_for(
    parameters: Iterable[torch.nn.Parameter],
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.0,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Return AdamW for these parameters, without decay on biases and gains."""
    return torch.optim.AdamW(
        decayed_groups(parameters, weight_decay), learning_rate, betas=betas, eps=eps, fused=True
    )


def decayed_groups(
    parameters: Iterable[torch.nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """Return two groups: matrices, which decay, and the rest, which does not."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def pretraining_optimizers(
    model: PreTrainedModel, cfg: Pretrain | TextToText
) -> list[torch.optim.Optimizer]:
    """Return the optimizers to step in turn, by the knob `optimizer`.

    That is AdamW or Adafactor for all parameters, or Muon for the blocks' matrices and AdamW
    without decay for the rest.
    """
    rate, decay = cfg.learning_rate, cfg.weight_decay
    if cfg.optimizer == "adamw":
        return [adamw(model, rate, cfg.betas, decay, cfg.adam_epsilon)]
    if cfg.optimizer == "adafactor":
        groups = decayed_groups((p for p in model.parameters() if p.requires_grad), decay)
        return [torch.optim.Adafactor(groups, rate)]
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()
    }
    head = model.get_output_embeddings()
    embeddings |= {id(p) for p in head.parameters()} if head is not None else set()
    matrices = [p for p in model.parameters() if p.dim() == 2 and id(p) not in embeddings]
    fused = {
        id(m.weight): name
        for name, m in model.named_modules()
        if name.endswith(("c_attn", "query_key_value"))
    }
    # GPT-NeoX stores the rows of its fused projection head by head: q, k, v of the first head, then
    # of the next.
    blocks = {"c_attn": 1, "query_key_value": model.config.num_attention_heads}
    heads = [blocks[fused[id(p)].rpartition(".")[2]] if id(p) in fused else 0 for p in matrices]
    groups = [
        {"params": [p for p, h in zip(matrices, heads, strict=True) if h == count], "heads": count}
        for count in sorted(set(heads))
    ]
    muon = Muon(groups, rate, decay)
    return [muon, adamw(model, rate, cfg.betas, eps=cfg.adam_epsilon, but_not=matrices)]


class Muon(torch.optim.Optimizer):
    """SGD with momentum and orthogonal updates: all directions of a matrix move alike.

    The update is scaled by 0.2 * sqrt(the longer side). That gives it AdamW's size, so that one
    learning rate and one decay serve both (Liu et al. 2025, section 2.2).

    PyTorch's own `torch.optim.Muon` computes in bfloat16, which is hundreds of times slower on a
    CPU without bfloat16. This one uses the precision of the weights. If a model keeps attention's
    q, k and v projections in one matrix, each of the three is made orthogonal separately.

    Args:
        groups: matrices only, grouped by `heads`. That is 0 for plain matrices. For fused attention
            projections it is the number of blocks that they are laid out in, each with its part of
            q, k and v (1: q, k and v one after the other).

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ):
        super().__init__(
            groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "heads": 0}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            updates = _scaled_orthogonal(
                [self._momentum(p, group["momentum"]) for p in parameters], group["heads"]
            )
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(
                    update, alpha=-group["lr"]
                )

    def _momentum(self, parameter: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        """Update the running mean of the gradient and return Nesterov's momentum.

        That is a weighted mean of the gradient and its updated running mean.
        """
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        return gradient.lerp(state["momentum"].lerp_(gradient, 1 - momentum), momentum)


def _scaled_orthogonal(matrices: list[torch.Tensor], heads: int) -> list[torch.Tensor]:
    """Make each matrix orthogonal and scale it.

    Matrices of one shape are processed together.
    """
    stacks = [_stacked(matrix, heads) for matrix in matrices]
    done: dict[int, torch.Tensor] = {}
    for shape in dict.fromkeys(stack.shape[1:] for stack in stacks):
        places = [i for i, stack in enumerate(stacks) if stack.shape[1:] == shape]
        together = orthogonalize(torch.cat([stacks[i] for i in places])) * (0.2 * max(shape) ** 0.5)
        done.update(zip(places, together.split([len(stacks[i]) for i in places]), strict=True))
    return [_unstacked(done[i], matrix, heads) for i, matrix in enumerate(matrices)]


def _stacked(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """Return `[M, rows, columns]`: one matrix, or attention's three projections separately."""
    rows, columns = matrix.shape
    if heads == 0:
        return matrix[None]
    if columns > rows:
        return matrix.reshape(rows, 3, -1).transpose(0, 1)
    return matrix.reshape(heads, 3, -1, columns).transpose(0, 1).reshape(3, -1, columns)


def _unstacked(stack: torch.Tensor, like: torch.Tensor, heads: int) -> torch.Tensor:
    rows, columns = like.shape
    if heads == 0:
        return stack[0]
    if columns > rows:
        return stack.transpose(0, 1).reshape(rows, columns)
    return stack.reshape(3, heads, -1, columns).transpose(0, 1).reshape(rows, columns)


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Bring the singular values of each matrix of `[M, rows, columns]` near 1 by Newton-Schulz.

    After 5 steps they are between 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@torch.no_grad()
def clip_gradients(parameters: Sequence[torch.nn.Parameter], max_norm: float) -> float:
    """Scale all gradients to a global norm of at most `max_norm`; return the norm before.

    `torch.nn.utils.clip_grad_norm_` also multiplies by 1 if nothing is clipped, which is a needless
    pass over all gradients.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if float(norm) > max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def step_all(optimizers: Sequence[torch.optim.Optimizer], learning_rate: float | None) -> None:
    """Step each optimizer at this rate, then clear its gradients.

    Args:
        learning_rate: None: only clear the gradients.
    """
    for optimizer in optimizers:
        if learning_rate is not None:
            set_learning_rate(optimizer, learning_rate)
            optimizer.step()
        optimizer.zero_grad()


def warmup_of(steps: float, total: int) -> int:
    """Return the length of a warm-up in steps. Below 1, `steps` is a fraction of `total`."""
    return round(steps * total) if steps < 1 else int(steps)


def linear_factor(step: int, total: int, warmup_fraction: float) -> float:
    """Return GPT-1's learning-rate factor: a linear warm-up times the fraction of steps left.

    It is never 0 at a step that is taken.

    Source: openai/finetune-transformer-lm, opt.py (`warmup_linear`). It counts from 0, so its first
    step has rate 0.
    """
    progress = (step + 1) / (total + 1)
    return (min(1.0, progress / warmup_fraction) if warmup_fraction > 0 else 1.0) * (1 - progress)


def scheduled_factor(name: str, step: int, total: int, warmup: int, final: float) -> float:
    """Return PPO's learning-rate factor.

    It rises linearly from a tenth of the peak over `warmup` steps. Then it is constant, or falls
    linearly or as a cosine to `final`.
    """
    if step < warmup:
        return 0.1 + 0.9 * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if name == "linear":
        return 1 - (1 - final) * progress
    return (
        1.0
        if name == "constant"
        else final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
    )


def cosine_factor(step: float, total: float, warmup: float, final: float) -> float:
    """Return the fraction of the peak learning rate at `step`.

    It rises linearly over `warmup`, falls as a cosine to `final` at `total`, and then stays flat.
    The unit is steps or tokens; `step` of them are done.
    """
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def inverse_square_root_factor(step: int, flat: int) -> float:
    """Return sqrt(flat / max(step, flat)).

    With a peak of 0.01 and `flat` 10^4, this is T5's 1 / sqrt(max(n, 10^4)) [T5, section 3.1.2].
    """
    flat = max(1, flat)
    return math.sqrt(flat / max(step, flat))
