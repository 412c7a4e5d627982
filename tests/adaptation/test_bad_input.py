"""Bad input of `adapt` is one clear error, before training."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from convsmith.adaptation import adapt
from convsmith.adaptation.methods.adda import ADDASettings
from convsmith.errors import ConvsmithError, InvalidArgument
from convsmith.training import TrainConfig
from tests.adaptation.worlds import K, network

QUICK = {"steps": 3, "lr": 0.05, "batch_size": 12, "device": "cpu"}


def bad_network(value):
    model = network()
    with torch.no_grad():
        model[0].weight[0] = value
    return model


def images(n, channels=1, side=8, seed=0):
    return np.random.default_rng(seed).random((n, channels, side, side), dtype=np.float32)


LABELS = np.arange(40) % K
GOOD = (images(40), LABELS)


@pytest.mark.parametrize(
    ("arguments", "changes", "rule"),
    [
        ((network(), "digits", "digits"), {"target_classes": "0,ten"}, "ten"),
        ((network(), GOOD, images(0)), {}, "none of them 0|no images"),
        ((network(), (images(40), np.zeros(40, dtype=int)), images(20)), {}, "two classes"),
        ((network(), GOOD, images(20)), {"batch_size": 1}, "argument: batch_size"),
        ((bad_network(math.nan), GOOD, images(20)), {}, "not finite before training"),
        ((network(), (images(40) * np.nan, LABELS), images(20)), {}, "finite"),
        ((network(), GOOD, images(20, channels=3)), {}, "one number of channels"),
        ((network(), GOOD, images(20, side=9)), {}, "one size"),
        ((network(), (images(40, 3), LABELS), images(20, 3)), {}, "does not take these images"),
        ((network(), GOOD, images(20)), {"method": "sam"}, "did you mean 'san'"),
        ((network(), GOOD, images(20)), {"validator": "infomx"}, "did you mean 'infomax'"),
        ((network(), GOOD, images(20)), {"validator": "oracle"}, "use_target_labels=True"),
        ((network(), GOOD, images(20)), {"use_target_labels": True}, "no labels to evaluate"),
        ((network(), GOOD, images(20)), {"entropi": 1}, "did you mean 'entropy'"),
        ((network(), (images(40), LABELS - 1), images(20)), {}, "labels run from 0"),
        ((network(), images(40), images(20)), {}, "the source is"),
        ((network(), GOOD, (images(20), np.full(20, 7))), {}, "count the source's 5 classes"),
        ((network(), GOOD, images(20)), {"target_classes": "0-2"}, "only a target with labels"),
        (("no_such_model", GOOD, images(20)), {}, "no model"),
        ((nn.Flatten(), GOOD, images(20)), {}, "linear layer"),
        ((network(), GOOD, images(20)), {"reference": "other"}, "a reference is"),
        ((network(), GOOD, images(20)), {"config": TrainConfig(steps=3)}, "argument: (steps, lr|lr, device)|steps"),
        ((network(), GOOD, images(20)), {"settings": ADDASettings()}, "settings of 'san' are SANSettings"),
        ((None, GOOD, images(20)), {}, "argument: model"),
        ((3, GOOD, images(20)), {}, "argument: model"),
        ((network(), None, images(20)), {}, "argument: source"),
        ((network(), GOOD, 5), {}, "argument: target"),
        ((network(), (torch.zeros(40, 1, 8, 8, dtype=torch.cfloat), LABELS), images(20)), {}, "argument: source"),
        ((network(), (torch.zeros(40, 1, 8, 8).to_sparse(), LABELS), images(20)), {}, "argument: source"),
        ((network(), (torch.zeros(40, 1, 8, 8, device="meta"), LABELS), images(20)), {}, "argument: source"),
        ((network(), GOOD, torch.zeros(20, 1, 8, 8, device="meta")), {}, "argument: target"),
        ((network(), GOOD, images(20)), {"method": None}, "argument: method"),
        (("cs_lenett", GOOD, images(20)), {}, "did you mean 'cs_lenet'"),
        ((network(), GOOD, images(20)), {"steps": "3"}, "argument: steps"),
        ((network(), GOOD, images(20)), {"lr": None, "seed": 1.5}, "argument: seed"),
        ((network(), GOOD, images(20)), {"device": 7}, "argument: device"),
        ((network(), GOOD, images(20)), {"validator": 7}, "validator"),
        ((network(), GOOD, images(20)), {"resume": "yes"}, "argument: resume"),
        ((network(), GOOD, images(20)), {"resume": True}, "resumed from its folder"),
        ((network(), GOOD, images(20)), {"out": 3}, "argument: out"),
        ((network(), GOOD, images(20)), {"progress": 3}, "argument: progress"),
        ((network(), GOOD, images(20)), {"collapse": 3}, "argument: collapse"),
        ((network(), GOOD, images(20)), {"evaluation": "infomax"}, "argument: evaluation"),
        ((network(), GOOD, images(20)), {"data": 3}, "argument: data"),
        ((network(), GOOD, images(20)), {"size": "big"}, "argument: size"),
        ((network(), GOOD, images(20)), {"channels": 2}, "argument: channels"),
        ((network(), GOOD, images(20)), {"crop": 3}, "argument: crop"),
        ((network(), GOOD, images(20)), {"num_evals": 0}, "argument: num_evals"),
    ],
)
def test_bad_input_is_one_clear_error_before_training(arguments, changes, rule):
    def never(done, total, note):
        raise AssertionError("training began")

    with pytest.raises(InvalidArgument, match=rule) as caught:
        adapt(*arguments, **{**QUICK, "progress": never, **changes})
    assert isinstance(caught.value, ConvsmithError)
