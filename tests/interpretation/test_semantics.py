"""Topics, the interpretive loss, unit removal in closed form and by loop, labels against shuffled topics."""

import pytest
import torch
from torch import nn

from convsmith.errors import InvalidArgument
from convsmith.interpretation import (
    InterpretiveLoss,
    label_units,
    prediction_difference,
    revise,
    score_labels,
    topics_from_text,
)

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def captions(images, labels):
    """A real set with text: digits described by their value, by how much ink they have and where they lean."""
    ink = images.sum((1, 2, 3))
    columns = torch.arange(8.0)
    top = (images[:, 0, :4].sum(1) * columns).sum(1) / images[:, 0, :4].sum((1, 2)).clamp(min=1e-6)
    low = (images[:, 0, 4:].sum(1) * columns).sum(1) / images[:, 0, 4:].sum((1, 2)).clamp(min=1e-6)
    texts = []
    for row in range(len(images)):
        words = ["bold" if ink[row] > ink.median() else "thin", f"handwritten {NAMES[int(labels[row])]}"]
        if top[row] - low[row] > 0.5:
            words.append("slanted right")
        texts.append("a " + " ".join(words))
    return texts


@pytest.mark.parametrize("method", ["nmf", "lda"])
def test_topics_gather_the_texts_that_share_words(method):
    texts = ["red apple fruit", "green apple fruit", "fast red car", "fast blue car road"] * 5
    topics = topics_from_text(texts, 2, method=method, share=0.6)
    assert topics.present.shape == (20, 2)
    assert topics.count == 2
    fruit = 0 if "apple" in topics.words[0] else 1
    assert torch.equal(topics.present[:, fruit], torch.tensor([1.0, 1.0, 0.0, 0.0] * 5))


def test_the_loss_is_its_formula_and_has_a_gradient():
    torch.manual_seed(0)
    loss = InterpretiveLoss(6, 3, hidden=4, weight=0.5).double()
    v = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    s = torch.randint(0, 2, (5, 3)).double()
    total = 0.0
    for row in range(5):
        g = torch.sigmoid(loss.head(v[row]))
        total += ((g - s[row]) ** 2).sum()
    torch.testing.assert_close(loss(v, s), 0.5 * total / 5)
    assert torch.autograd.gradcheck(lambda features: loss(features, s), (v,))
    maps = torch.randn(5, 6, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(loss(maps, s), loss(maps.mean((2, 3)), s))
    tokens = maps.flatten(2).transpose(1, 2)
    torch.testing.assert_close(loss(tokens, s), loss(maps, s))


@pytest.mark.parametrize("removal", ["zero", "mean"])
@pytest.mark.parametrize("top", [1.0, 0.25])
def test_a_linear_head_has_the_closed_form_and_any_head_the_loop(removal, top):
    torch.manual_seed(1)
    features, head = torch.rand(20, 7), nn.Linear(7, 4)
    closed = prediction_difference(head, features, removal=removal, top=top)
    looped = prediction_difference(lambda v: head(v), features, removal=removal, top=top, batch_size=3)
    torch.testing.assert_close(closed, looped, atol=1e-6, rtol=1e-5)
    expected = torch.zeros(7, 4)
    count = round(top * 20)
    for unit in range(7):
        rows = features[:, unit].argsort(descending=True)[:count]
        for row in rows:
            without = features[row].clone()
            without[unit] = features[:, unit].mean() if removal == "mean" else 0.0
            expected[unit] += (head(features[row]) - head(without)).detach() / count
    torch.testing.assert_close(closed.detach(), expected, atol=1e-6, rtol=1e-5)
    some = prediction_difference(head, features, [5, 2], removal=removal, top=top)
    torch.testing.assert_close(some, closed[[5, 2]])


def test_planted_units_get_their_topic_and_hold_on_new_images():
    torch.manual_seed(2)
    topics = torch.randint(0, 2, (300, 3)).float()
    features = torch.cat([topics + 0.2 * torch.randn(300, 3), torch.randn(300, 2)], dim=1)
    head = nn.Linear(5, 3)
    with torch.no_grad():
        head.weight.copy_(torch.cat([2 * torch.eye(3), torch.zeros(3, 2)], dim=1))
    labels = label_units(prediction_difference(head, features[:200], top=0.3))
    assert labels[:3].tolist() == [0, 1, 2]
    found = score_labels(features[200:, :3], topics[200:], labels[:3])
    assert found.score > 0.95
    assert found.null_high < 0.65
    assert abs(found.null_mean - 0.5) < 0.05


def test_labels_of_units_from_captions_of_digits_beat_shuffled_topics(digits):
    """The whole line on real images: captions, topics, a head on frozen features, unit labels, held-out score."""
    x, y = digits.train_x[:600], digits.train_y[:600]
    topics = topics_from_text(captions(x, y), 10)
    encoder = digits.model[:9]
    with torch.no_grad():
        features = encoder(x)
    torch.manual_seed(0)
    loss = InterpretiveLoss(32, topics.count, hidden=0, weight=1.0)
    optimizer = torch.optim.Adam(loss.parameters(), 0.05)
    first = loss(features[:400], topics.present[:400]).item()
    for _ in range(150):
        optimizer.zero_grad()
        value = loss(features[:400], topics.present[:400])
        value.backward()
        optimizer.step()
    assert value.item() < 0.7 * first
    labels = label_units(prediction_difference(loss.predict, features[:400], removal="mean", top=0.2))
    found = score_labels(features[400:], topics.present[400:], labels)
    assert found.score > found.null_high


def test_revision_raises_only_the_named_units():
    torch.manual_seed(0)
    features = torch.rand(9, 5)
    raised = revise(features, [1, 3], 2.0)
    assert torch.equal(raised[:, [0, 2, 4]], features[:, [0, 2, 4]])
    torch.testing.assert_close(raised[:, 1], features[:, 1] + 2 * features[:, 1].std(correction=0))
    assert torch.equal(revise(features, [1], 0.0), features)


def test_bad_requests_are_refused():
    features = torch.rand(4, 3)
    with pytest.raises(InvalidArgument, match="method has no such choice"):
        topics_from_text(["a b", "c d"], method="lsa")
    with pytest.raises(InvalidArgument, match="words"):
        topics_from_text(["the", "of"], 1)
    with pytest.raises(InvalidArgument, match="zero"):
        prediction_difference(nn.Linear(3, 2), features, removal="drop")
    with pytest.raises(InvalidArgument, match="top must be a finite number above 0 and at most 1"):
        prediction_difference(nn.Linear(3, 2), features, top=0.0)
    with pytest.raises(InvalidArgument, match="unit"):
        prediction_difference(nn.Linear(3, 2), features, [3])
    for words in ({"labels": torch.zeros(2, dtype=torch.long)}, {"nulls": 0}):
        with pytest.raises(InvalidArgument, match=next(iter(words))):
            score_labels(features, torch.eye(4), **{"labels": torch.zeros(3, dtype=torch.long), **words})
    with pytest.raises(InvalidArgument, match="strength"):
        revise(features, [0], -1.0)


def test_the_area_of_tied_values_is_one_half():
    """Rectified units are zero on many images: their order says nothing."""
    features = torch.zeros(40, 1)
    features[0] = 1.0
    topics = (torch.arange(40) >= 20).float()[:, None]
    found = score_labels(features, topics, torch.zeros(1, dtype=torch.long))
    assert found.score == pytest.approx((19 / 20 + 0) / 2)
