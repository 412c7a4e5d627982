"""What the K discriminators of SAN cost as one batch beside a loop over K networks, and MMD beside its public form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.adaptation import ClassDiscriminators, mmd, selective_adversarial_loss
from experiments.benchmarks.contract import Bench, suite

#: classes, feature width, hidden widths, aim
PUBLISHED = ((31, 256, (1024, 1024), 0.65), (65, 256, (256,), 0.55))
CURVE = (1, 4, 16, 31, 64, 128, 256)
BATCH = 36


@suite("adaptation")
def run(bench: Bench) -> None:
    """SAN's training step against K, batched and looped: forward, loss, backward, SGD with momentum; MK-MMD."""
    for classes, width, hidden, aim in PUBLISHED[1:] if bench.quick else PUBLISHED:
        name = f"SAN step, K={classes}, {width}-{'-'.join(map(str, hidden))}-1, batch {BATCH}+{BATCH}"
        _step(bench, name, classes, width, hidden, f"at most {aim} times the K-loop on two cores", rounds=21)
    for classes in (1, 16) if bench.quick else CURVE:
        name = f"SAN step against K, K={classes}, 256-256-1, batch {BATCH}+{BATCH}"
        _step(bench, name, classes, 256, (256,), "", rounds=9)
    _mmd(bench)
    bench.notes.append(
        "K-loop: K separate nn.Sequential with nn.Dropout, their losses summed, as the public code does; same sizes, "
        "same optimizer. Peak memory counts tensors made inside one step."
    )


def _step(bench: Bench, name: str, classes: int, width: int, hidden: tuple[int, ...], aim: str, *, rounds: int) -> None:
    torch.manual_seed(0)
    device = bench.device
    bank = ClassDiscriminators(width, classes, hidden).to(device)
    loop = nn.ModuleList([bank.one(k) for k in range(classes)]).to(device)
    source, target = (torch.randn(BATCH, width, device=device, requires_grad=True) for _ in range(2))
    p_source, p_target = (torch.randn(BATCH, classes, device=device).softmax(1) for _ in range(2))
    weights = torch.rand(classes, device=device) + 0.5

    def looped() -> Tensor:
        features, p = torch.cat([source, target]), torch.cat([p_source, p_target])
        domain = torch.cat([torch.ones(BATCH, 1, device=device), torch.zeros(BATCH, 1, device=device)])
        total = torch.zeros((), device=device)
        for k, net in enumerate(loop):
            each = F.binary_cross_entropy_with_logits(net(features), domain, reduction="none")[:, 0]
            total = total + weights[k] * (p[:, k] * each).sum()
        return total / (2 * BATCH)

    def batched() -> Tensor:
        return selective_adversarial_loss(source, target, p_source, p_target, weights, bank)

    bench.compare(
        name,
        {"K-loop": _trained(looped, loop), "batched": _trained(batched, bank)},
        baseline="K-loop",
        rounds=rounds,
        seconds=40,
        settings={"K": classes, "features": width, "hidden": list(hidden), "batch": 2 * BATCH, "dropout": 0.5},
        aim=aim,
    )


def _trained(loss: Callable[[], Tensor], module: nn.Module) -> Callable[[], None]:
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def _mmd(bench: Bench) -> None:
    source, target = (torch.randn(128, 256, device=bench.device, requires_grad=True) for _ in range(2))
    widths = (2.0, 4.0, 8.0, 16.0, 32.0)

    # one [2B, 2B, d] tensor of differences a kernel, as the widespread code builds it
    def public() -> None:
        n, joint = len(source), torch.cat([source, target])
        total = joint.new_zeros(())
        for b in widths:
            distance = (joint[None, :, :] - joint[:, None, :]).square().sum(2)
            k = torch.exp(-distance / (2 * b * b))
            total = total + k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()
        (total / len(widths)).backward()

    def ours() -> None:
        mmd(source, target, bandwidths=widths, estimator="biased").backward()

    bench.compare(
        "MK-MMD, five kernels, 128+128 features of 256, forward and backward",
        {"difference tensors": public, "one distance matrix": ours},
        baseline="difference tensors",
        settings={"batch": 256, "features": 256, "kernels": 5},
    )
