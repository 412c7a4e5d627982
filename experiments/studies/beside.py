"""What stands beside a study of real images: its digit twin, the papers' number, two sentences for practitioners.

Written after the runs, by people; the results page prints it under the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Beside:
    """``twins``: studies of the same claims on digits; ``published``: the papers' number; ``practice``: the advice."""

    twins: tuple[str, ...]
    published: str
    practice: str = ""


BESIDE = {
    "transfer/styles": Beside(
        twins=("transfer/methods",),
        published="Office-31 to 10 classes, AlexNet, averages as Zhang et al. (CVPR 2018, IWAN) print them: "
        "source-only 76.3, DANN 66.6, SAN 87.3 %.",
        practice="Do not put a plain domain adversary on a target that may lack classes: its mean lay below "
        "source-only in every cell. SAN gained 2 to 11 points where source-only was weak (27 to 40 %) and lost 11 to "
        "12 where it was strong (57 to 66 %); its entropy term gathers its answers on a few large classes (about 4.6, "
        "the truth spreads over 8.9), so look at accuracy by class, or at how many classes are predicted, before you "
        "prefer it: averaged over classes SAN lay below source-only in five of six cells. What would have to be true "
        "for the claim is not better class weights: told the true ones, SAN moved by at most 1.1 points in any "
        "direction, without any by at most 4. It is the entropy term: without it SAN lost 13 to 20 points, as DANN "
        "does, and with it the answers gather on few classes; the claim needs a source-only network weak enough "
        "that this gathering wins.",
    ),
    "transfer/selection": Beside(
        twins=("transfer/methods",),
        published="Salvador et al. (TMLR 2023), Office-Home and VisDA: choosing without target labels costs up to 30 "
        "points.",
        practice="Expect to lose about 4 points to a choice made without target labels, and hardly more (4.5) by "
        "simply taking the last step (on the stamps 2 to 4). No validator here is worth tuning for.",
    ),
    "pooling/fine-tune": Beside(
        twins=("pooling/convergence",),
        published="iSQRT-COV (Li et al., CVPR 2018), ResNet-50 with every layer fine-tuned at 448 pixels: 88.1 % on "
        "CUB Birds, 90.0 % on Aircrafts, 92.8 % on Cars.",
        practice="Give a freshly drawn second-order head a rate of its own: at one rate for all it lost 14 points to "
        "average pooling, at five times the rate (the published fine-tuning's factor) 0.9 ± 2.0, and 600 updates in "
        "place of 200 changed nothing (one seed). That is no gain either: what the papers have and this has not is a "
        "backbone trained with second-order pooling from the start, every layer fine-tuned, and 448 pixels.",
    ),
    "redundancy/fashion": Beside(
        twins=("redundancy/family",),
        published="the data set's paper (Xiao et al. 2017, table 3): 84.2 % with logistic regression, 87.1 % with a "
        "perceptron of 100 hidden units; the list of results in its repository (not verified by its authors): 90.0 % "
        "with a perceptron of 256-128-64, 92.5 % with two convolutions and 83,466 parameters, 95.0 % with MobileNet "
        "and mirror images.",
        practice="At equal parameters expect nothing from interleaving that two passes over 60,000 images can show: "
        "IGCV1 lies 0.5 ± 1.0 points above the regular network, IGCV3 0.0 ± 1.4, IGCV2 0.5 below, at more "
        "MACs and four to five times the time (one image, eager, one thread, an idle machine); at equal MACs "
        "IGCV1 lies 0.2 above and IGCV3 0.7 below (one seed). If you interleave, take two members: the mean "
        "peaks there as the paper says (87.4, 87.7, 86.8, 86.9 % with 1, 2, 4, 8), though the differences are"
        " within the intervals. What would have to be true for the claim is none of what could be varied "
        "here: four times the updates give IGCV1 0.2 ± 1.2, four times the positions -0.2 ± 0.3, 16 times the"
        " parameters 0.3 (one seed). That leaves what these budgets do not reach, depth and hundreds of "
        "passes. The controls, networks that others published, by the recipes they published: the linear classifier "
        "reaches 83.9 ± 0.2 %, 0.3 below the paper's logistic regression; the paper's perceptron 87.9 ± 1.1 in the "
        "scikit-learn of today, 0.8 above what was printed; the deeper perceptron 89.0 ± 0.2, 1.0 below, and the two "
        "convolutions 91.6 (one seed), 0.9 below, where the published numbers are single runs too. One of four lies "
        "within half a point. The data and the training are sound for comparisons, not for records.",
    ),
    "transfer/stamps": Beside(
        twins=("transfer/methods",),
        published="none on these pictures; on Office-31 to 10 classes, AlexNet, averages as Zhang et al. (CVPR 2018, "
        "IWAN) print them: source-only 76.3, DANN 66.6, SAN 87.3 %.",
        practice="With about 280 photographs to learn from and 102 drawings to adapt to, source-only reaches 23 % and "
        "only AR stands clearly above it (6.7 ± 4.0 points); look for more source pictures before you look for a "
        "method. "
        "DANN does not fall below source-only here, so there is nothing for class weights to repair: told the true "
        "ones SAN gains 9.0 ± 8.6 points, with its own 8.4 ± 8.9, with none 7.3 ± 9.2.",
    ),
    "pooling/fashion": Beside(
        twins=("pooling/power",),
        published="none on these pictures; MPN-COV and iSQRT-COV report ImageNet.",
        practice="From scratch a second-order head is worth having: iSQRT-COV gains 2.0 ± 0.8 points over average "
        "pooling in one pass, and 1.8 ± 1.0 over average pooling with as many parameters, so it is not the size. That "
        "it needs fewer updates is seen in the mean only (504 against 814 of 843).",
    ),
    "redundancy/pretrained": Beside(
        twins=("redundancy/repair",),
        published="Han et al. (2015): 8 in 9 weights of AlexNet go without loss on ImageNet after retraining; Li et al."
        " (2017): a quarter of ResNet-34's operations for about 1 point.",
        practice="From a network that was designed small take bits first: int8 lost 1.0 ± 4.8 points (97 % of the "
        "answers stay), asked no training and was by far the fastest here (0.56 of the time). A third of the MACs "
        "costs 3 points pruned, 5 interleaved and 6 by low rank after two epochs of repair, and half of its weights "
        "nearly everything until it is repaired (4.1, then 67.0 of 69.2 %). Three seeds: differences below about 5 "
        "points say nothing; times were taken in turn with the original's on a busy machine. Low rank was run once "
        "more, after it stopped to factor depthwise layers, which had made it take 2.1 times the original's time for "
        "0.8 % of the MACs (now 0.86); its accuracy stayed (5.9 points lost, before 6.7). For the claim to hold the "
        "network would need slack that EfficientNet-Lite0 has not: the digit network of the same study gave half away "
        "for 0.3 points.",
    ),
    "together/photographs": Beside(
        twins=("together/one-network",),
        published="no paper makes this claim.",
        practice="What joins here is what costs little: int8 takes half of the time and a quarter of the file and "
        "loses nothing (with a head of 40 updates, 23 of 512 answers differ, two right ones lost, two won), and SAN "
        "gives the second-order head 8 ± 11 points on the target. What does not: a second-order head drawn anew "
        "costs 4 points on the source and 10 on the target after 150 updates (see pooling/fine-tune for the rate it "
        "needs), so the whole road ends 1.4 points below a plain average head without adaptation. Ask for open "
        "layers when you explain, as the command does: searched without a blank beside the picture, as here, 0.5 % "
        "of the channels keep every prediction and no layer lets the picture through, and a detector on such gates "
        "is near chance (0.64 ± 0.38). For the claim to hold the head would need the updates of a fine-tuning, and "
        "the routes the search that keeps layers open, which takes up to 300 passes a picture.",
    ),
    "routing/photographs": Beside(
        twins=("routing/sparsity", "routing/removal", "routing/layers", "routing/adversarial", "routing/detector"),
        published="removing 1 % of the critical nodes takes a network of ImageNet from about 70 % to under 40 %, and "
        "a detector reaches more than 0.9 (as an article and the authors' readme report them; the tables of the paper "
        "were not read).",
        practice="Do not guard a network with routes: a forest on its mean activations tells attacked from clean "
        "pictures with an area of 1.00 where routes give 0.91, at one pass in place of thirty; but it takes harmless "
        "noise for an attack just as surely (1.00), so what either sees is the noise, not the wrong answer. To rank "
        "nodes by need use gradient times activation, one pass (12 % of the predictions are left without 1 % of the "
        "nodes), or the published schedule (7 %), rather than the light penalty that the digits favoured (24 %). What "
        "failed: at gamma 0.05 the cheapest gates leave a constant that little of any picture changes, 0.9 % of the "
        "nodes, which is no explanation; asked for open layers the search finds a route for all 15 "
        "photographs, with 2.8 ± 1.0 % of the nodes, at rest on 13 of them within its 300 steps (how such a search "
        "begins was chosen while looking at these photographs); 1 % of random nodes already costs 36 points, as 1792 "
        "channels of 15 blocks have few idle ones; and gates of the attacked picture are as near to the clean ones in "
        "the last layer as in the first (0.32 and 0.26), while the overlap of critical nodes, which falls from 0.57 to "
        "0.39, falls as much between pictures that have nothing to do with each other (0.50 to 0.37).",
    ),
}
