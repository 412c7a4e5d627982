"""``routing/heat-maps``: does the heat lie on the thing, and does it go when the weights go?"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from convsmith.interpretation import find_routes, heat_map
from convsmith.report import Table
from convsmith.training.evaluation import wilson
from experiments.datasets.backbone import pretrained
from experiments.datasets.photographs import crops, photographs
from experiments.datasets.stamps import stamps
from experiments.studies.contract import Outcome, Study, Verdict, study

#: arm -> settings of the map; the first one decides
ARMS: dict[str, dict[str, Any]] = {
    "class activation": {},
    "class activation, last layer only": {"sizes": 1},
    "route activation": {"method": "route-activation"},
    "pathway gradient, blurred": {"method": "pathway-gradient", "smooth": 0.02},
}
KINDS = {"cut-outs": 40, "photographs": 24}
QUICK, PASSES, GAMMA = 8, 40, 0.01
#: the product of two layers was chosen on the first 24 cut-outs of the seed's order, all channels instead of the
#: route's on the 40 after them; these are left out
CHOSEN_ON = 24 + 40
#: least heat inside the object in units of its area, and the largest correlation that counts as destroyed
TWICE, DESTROYED = 2.0, 0.2


@study(
    "routing/heat-maps",
    claim="Heat maps lie on the thing that is predicted, and depend on what the network has learned.",
    source="Selvaraju et al. 2017, section 3; Zhang et al. 2018 (pointing); Adebayo et al. 2018 (redrawn weights)",
    rule="Photographic cut-outs, half as wide as the picture, on plain grey. A picture counts if the share of heat "
    "inside the object is at least twice the object's share of the area. The second test compares maps with those of "
    "the same network with weights drawn anew, on the cut-outs and on as many crops of photographs. Reproduced if at "
    "least 80 % of the pictures count and the mean correlation is under 0.2 on both kinds, partly if one of the two "
    "holds, else not reproduced; both for the class activation.",
    data="EfficientNet-Lite0 (ImageNet), photographic cut-outs, crops of sample photographs",
    extras=("demo",),
)
def heat_maps(running: Study) -> Outcome:
    """Measure the share of heat on cut-outs, and the correlation with maps of a network without knowledge."""
    seed, counts = running.seeds[0], {kind: QUICK if running.quick else n for kind, n in KINDS.items()}
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, count in counts.items():
        for start in range(0, count, 4):
            work = partial(measure, kind, start, seed, count)
            found.setdefault(kind, []).append(running.cell(f"{kind}|{start}|{seed}", work, sum(counts.values()) // 4))
    rows, facts = [], {}
    for arm in ARMS:
        ratio = [value for cell in found["cut-outs"] for value in cell[arm]["ratio"]]
        alike = {kind: [v for cell in cells for v in cell[arm]["alike"]] for kind, cells in found.items()}
        means = [round(sum(values) / len(values), 3) for values in alike.values()]
        good = sum(value >= TWICE for value in ratio) / len(ratio)
        low, high = wilson(good * len(ratio), len(ratio))
        facts[arm] = good, max(means)
        shown = f"{100 * good:.0f} ({100 * low:.0f} to {100 * high:.0f})"
        rows.append([arm, shown, round(sorted(ratio)[len(ratio) // 2], 2), *means])
    good, most = facts[next(iter(ARMS))]
    kept = [value for cells in found.values() for cell in cells for value in cell["kept"]]
    columns = ["map", "cut-outs, %", "heat over area, median", "correlation, cut-outs", "correlation, photographs"]
    caption = (
        "Cut-outs with twice the object's area in heat or more (95 % Wilson interval), and mean correlation with the "
        "maps of redrawn weights."
    )
    return Outcome(
        decide(good, most),
        f"Heat inside the object is at least twice its area on {100 * good:.0f} % of {counts['cut-outs']} cut-outs; "
        f"correlation with redrawn weights: {rows[0][3]} on cut-outs, {rows[0][4]} on photographs.",
        [Table(columns, rows, caption)],
        notes=[
            f"Routes of at most {PASSES} passes at gamma {GAMMA}; the prediction stays on {sum(kept)} of {len(kept)}. "
            "The form of the map was chosen on other cut-outs, after several forms had been seen there (their number "
            "was not kept). "
            "A single thing on plain grey draws the heat of any "
            "network, trained or not: the correlation on photographs is the one that says what was learned."
        ],
    )


def decide(share: float, alike: float) -> Verdict:
    """Apply the rule."""
    held = (share >= 0.8) + (alike < DESTROYED)
    return ("not reproduced", "partly", "reproduced")[held]


@lru_cache(maxsize=1)
def material(seed: int, count: int) -> tuple[nn.Module, nn.Module, dict[str, Tensor], Tensor]:
    """Return the network, its twin with weights drawn anew, images by kind [count, 3, 224, 224], object masks."""
    import timm

    model = pretrained()
    torch.manual_seed(seed)
    blank = timm.create_model("tf_efficientnet_lite0").eval()
    transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)
    things = [stamp for stamp in stamps() if not stamp.drawn]
    order = torch.randperm(len(things), generator=torch.Generator().manual_seed(seed)).tolist()
    made = [things[i].composed(256, ground=124, share=0.5) for i in order[CHOSEN_ON:][:count]]
    inside = torch.stack([mask[16:240, 16:240] for _, mask in made])  # the transform cuts 224 out of 256
    scenes = crops(list(photographs().values()), count, seed=seed + 1)
    images = {
        "cut-outs": torch.stack([transform(picture) for picture, _ in made]),
        "photographs": torch.stack([transform(picture) for picture in scenes]),
    }
    return model, blank, images, inside


def measure(kind: str, start: int, seed: int, count: int) -> dict[str, Any]:
    """Return by arm: heat in the object by its area (cut-outs only), correlation with the map of redrawn weights."""
    model, blank, images, inside = material(seed, count)
    x, rows = images[kind][start : start + 4], slice(start, start + 4)
    networks = (model, blank)
    routes = [find_routes(net, x, steps=PASSES, gamma=GAMMA, batch_size=4, channels_last=True) for net in networks]
    found: dict[str, Any] = {"kept": routes[0].kept.tolist()}
    for arm, settings in ARMS.items():
        mine, theirs = (heat_map(net, x, own, **settings) for net, own in zip(networks, routes, strict=True))
        pairs = zip(mine.flatten(1), theirs.flatten(1), strict=True)
        alike = [float(torch.corrcoef(torch.stack(pair))[0, 1].nan_to_num()) for pair in pairs]
        ratio: list[float] = []
        if kind == "cut-outs":
            mask = inside[rows].to(mine)
            share = (mine * mask).sum((1, 2)) / mine.sum((1, 2)).clamp(min=1e-12)
            ratio = (share / mask.mean((1, 2))).tolist()
        found[arm] = {"ratio": [round(r, 4) for r in ratio], "alike": [round(a, 4) for a in alike]}
    return found
