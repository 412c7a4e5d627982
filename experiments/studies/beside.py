"""What stands beside a study of real images: its digit twin, the papers' number, two sentences for practitioners.

Written after the runs, by people; the results page prints it under the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Beside:
    """``twin`` is the study of the same claim on digits, ``published`` the papers' number, ``practice`` the advice."""

    twin: str
    published: str
    practice: str = ""


BESIDE = {
    "transfer/styles": Beside(
        twin="transfer/methods",
        published="Office-31 to 10 classes, AlexNet, averages as Zhang et al. (CVPR 2018, IWAN) print them: "
        "source-only 76.3, DANN 66.6, SAN 87.3 %.",
        practice="Do not put a plain domain adversary on a target that may lack classes: it cost points in every cell "
        "here. SAN's entropy term gathers its answers on a few large classes (the truth spreads over 8.9 of 10), so "
        "look at accuracy by class, or at how many classes are predicted, before you prefer it to source-only.",
    ),
    "transfer/selection": Beside(
        twin="transfer/methods",
        published="Salvador et al. (TMLR 2023), Office-Home and VisDA: choosing without target labels costs up to 30 "
        "points.",
    ),
    "pooling/fine-tune": Beside(
        twin="pooling/convergence",
        published="iSQRT-COV (Li et al., CVPR 2018), ResNet-50 with every layer fine-tuned at 448 pixels: 88.1 % on "
        "CUB Birds, 90.0 % on Aircrafts, 92.8 % on Cars.",
    ),
}
