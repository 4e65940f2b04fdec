"""Muon for the matrices inside the layers, AdamW for the rest.

Muon (Jordan et al., 2024) replaces a matrix's momentum by the nearest matrix with equal singular
values. For this model it needs about half the tokens of AdamW alone. The step has root mean square
0.4 * lr per weight, near AdamW's, so that both share one schedule.
"""

import torch
import torch.distributed as dist

MOMENTUM = 0.95
STEP_RMS = 0.4
WEIGHT_DECAY = 0.05


def orthogonalize(batch: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """[N, rows, columns] FP32 -> about U V^T of each, by a quintic Newton-Schulz iteration in BF16.

    The coefficients are Jordan's: they trade exactness (singular values land in 0.7..1.2) for speed.
    """
    tall = batch.shape[1] > batch.shape[2]
    x = batch.transpose(1, 2) if tall else batch
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    x = x.float()
    return x.transpose(1, 2) if tall else x


class MuonAdamW:
    """Processes share Muon's work: each computes the updates of its layers, then all add up."""

    def __init__(self, network):
        c = network.c
        head_rows = [c.num_attention_heads * c.head_dim] + 2 * [c.num_key_value_heads * c.head_dim]
        # (parameter, sizes of the matrices stacked in its rows)
        self._matrices = []
        for layer in network.layers:
            self._matrices += [(layer.qkv_proj, head_rows), (layer.o_proj, [c.hidden_size]),
                               (layer.gate_up_proj, 2 * [c.moe_intermediate_size]),
                               (layer.down_proj, [c.hidden_size])]
        mine = {id(p) for p, _ in self._matrices}
        rest = [p for p in network.parameters() if id(p) not in mine]
        self._adamw = torch.optim.AdamW(
            [{"params": [p for p in rest if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
             {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0}],
            lr=1.0, betas=(0.9, 0.98), eps=1e-8, fused=True)
        self._momenta = [torch.zeros_like(p) for p, _ in self._matrices]
        self._updates = torch.zeros(sum(p.numel() for p, _ in self._matrices))

    def _update(self, momentum, grad, row_sizes) -> torch.Tensor:
        direction = grad + MOMENTUM * momentum  # Nesterov
        batch = direction.view(-1, *direction.shape[-2:])
        parts = [orthogonalize(part) * max(part.shape[-2:]) ** 0.5 for part in batch.split(row_sizes, dim=1)]
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        rank, processes, start = dist.get_rank(), dist.get_world_size(), 0
        self._updates.zero_()
        views = []
        for i, ((p, row_sizes), momentum) in enumerate(zip(self._matrices, self._momenta)):
            view = self._updates[start : start + p.numel()].view_as(p)
            start += p.numel()
            views.append(view)
            momentum.lerp_(p.grad, 1 - MOMENTUM)
            if i // 4 % processes == rank:  # four matrices a layer
                view.copy_(self._update(momentum, p.grad * (1 - MOMENTUM), row_sizes).view_as(p))
        dist.all_reduce(self._updates)
        for (p, _), view in zip(self._matrices, views):
            p.mul_(1 - lr * WEIGHT_DECAY).add_(view, alpha=-lr * STEP_RMS)
