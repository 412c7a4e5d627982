"""Order and augmentation are functions of (seed, epoch): resume, processes and threads change nothing."""

import gc
import itertools
import multiprocessing

import pytest
import torch
from torch.testing import assert_close

from convsmith.data import DomainLoader, Loader, from_arrays, load
from convsmith.errors import InvalidArgument


def same(left, right):
    left, right = list(left), list(right)
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.index, b.index)


@pytest.fixture(scope="module")
def digits():
    return load("digits", augment="digits")


def split_of(count, classes=2):
    generator = torch.Generator().manual_seed(1)
    return from_arrays(torch.rand(count, 1, 6, 6, generator=generator), torch.arange(count) % classes)


@pytest.mark.parametrize(("start", "workers"), [(0, 0), (1, 0), (7, 0), (19, 0), (20, 0), (7, 2)])
def test_an_epoch_continued_in_the_middle_is_the_tail_of_the_whole(digits, start, workers):
    loader = Loader(digits.train, 64, seed=3, shuffle=True, augment=True, workers=workers)
    assert len(loader) == 20
    same(list(Loader(digits.train, 64, seed=3, shuffle=True, augment=True).epoch(5))[start:], loader.epoch(5, start))


@pytest.mark.parametrize("augment", ["digits", "flip-crop", "imagenet"])
def test_two_processes_see_together_what_one_sees_with_twice_the_batch(digits, augment):
    split = digits.train.with_augment(augment).subset(range(100))
    whole = Loader(split, 16, seed=1, shuffle=True, augment=True)
    parts = [Loader(split, 8, seed=1, shuffle=True, augment=True, rank=r, world=2) for r in (0, 1)]
    assert {len(whole), *map(len, parts)} == {7}
    for one, left, right in zip(whole.epoch(2), parts[0].epoch(2), parts[1].epoch(2), strict=True):
        assert torch.equal(one.images, torch.cat([left.images, right.images]))
        assert torch.equal(one.index, torch.cat([left.index, right.index]))
    same(parts[1].epoch(1), Loader(split, 8, seed=1, shuffle=True, augment=True).sharded(1, 2).epoch(1))


def test_an_epoch_shows_every_image_once_and_epochs_differ(digits):
    loader = Loader(digits.train, 100, seed=0, shuffle=True)
    seen = [torch.cat([b.index for b in loader.epoch(e)]) for e in range(3)]
    for order in seen:
        assert torch.equal(order.sort().values, digits.train.index.sort().values)
    for a, b in itertools.combinations(seen, 2):
        assert not torch.equal(a, b)
    other = torch.cat([b.index for b in Loader(digits.train, 100, seed=1, shuffle=True)])
    assert not torch.equal(seen[0], other)


def test_without_shuffle_the_order_is_the_split_s_own(digits):
    assert torch.equal(torch.cat([b.index for b in Loader(digits.test, 50)]), digits.test.index)


def test_augmentation_changes_by_epoch_but_not_by_batch_size_or_neighbours(digits):
    split = digits.train
    large, small = (Loader(split, n, seed=2, shuffle=True, augment=True) for n in (64, 5))
    assert torch.equal(torch.cat([b.images for b in large.epoch(1)]), torch.cat([b.images for b in small.epoch(1)]))
    plain, first, second = split.fetch(range(8)), split.fetch(range(8), key=(2, 0)), split.fetch(range(8), key=(2, 1))
    for a, b in itertools.combinations((plain.images, first.images, second.images), 2):
        assert not torch.equal(a, b)
    assert torch.equal(split.subset([5]).fetch([0], key=(2, 1)).images[0], second.images[5])


def test_the_global_random_state_is_not_touched(digits):
    before = torch.get_rng_state()
    list(Loader(digits.train, 64, shuffle=True, augment=True, workers=1).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


def test_the_validation_and_test_splits_are_never_augmented(digits):
    same(Loader(digits.test, 64, augment=True).epoch(1), Loader(digits.test, 64).epoch(0))


def test_drop_last_and_lengths():
    split = split_of(10)
    assert [len(b) for b in Loader(split, 4)] == [4, 4, 2]
    assert [len(b) for b in Loader(split, 4, drop_last=True)] == [4, 4]
    assert [len(b) for b in Loader(split, 2, rank=1, world=2)] == [2, 2, 1]
    odd = [list(Loader(split_of(11), 2, rank=r, world=2)) for r in (0, 1)]
    assert [[len(b) for b in part] for part in odd] == [[2, 2, 1], [2, 2, 2]]
    assert torch.equal(torch.cat([odd[0][2].index, odd[1][2].index]), torch.tensor([8, 9, 10]))


@pytest.mark.parametrize(
    ("count", "batch", "world", "mixup", "steps", "twice"),
    [
        (10, 4, 1, None, 3, 2),
        (10, 2, 3, None, 2, 2),
        (13, 2, 3, None, 3, 5),
        (2, 1, 3, None, 1, 1),
        (4, 8, 3, None, 1, 2),  # smaller than one global batch: equally many for all, no more
        (12, 4, 3, None, 1, 0),
        (4, 4, 3, {"mixup_alpha": 0.8}, 1, 2),
    ],
)
def test_a_filled_last_batch_shows_every_image_and_the_first_again(count, batch, world, mixup, steps, twice):
    options = {"seed": 1, "shuffle": True, "fill_last": True, "mixup": mixup}
    loaders = [Loader(split_of(count), batch, **options).sharded(r, world) for r in range(world)]
    assert {(len(loader), loader.filled) for loader in loaders} == {(steps, twice)}
    order = loaders[0].order(2).tolist()
    assert order[count:] == (order[:count] * 2)[:twice]
    together = [torch.cat([b.index for b in parts]) for parts in zip(*(one.epoch(2) for one in loaders), strict=True)]
    assert len({len(b) for loader in loaders for b in loader.epoch(2)}) == 1
    assert sorted(torch.cat(together).tolist()) == sorted(order)
    if mixup is None:
        assert torch.cat(together).tolist() == order


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"batch_size": 4, "drop_last": True, "fill_last": True}, "one of them"),
        ({"batch_size": 0}, "batch_size must be a whole number at least 1"),
        ({"batch_size": -1}, "batch_size must be a whole number at least 1"),
        ({"batch_size": 4, "rank": 2, "world": 2}, "rank < world"),
        ({"batch_size": 4, "workers": -1}, "workers must be a whole number at least 0"),
        ({"batch_size": 11, "drop_last": True}, "no batch"),
        ({"batch_size": 3, "world": 3}, "too few for 3 processes"),
    ],
)
def test_bad_arguments_are_refused_before_any_batch(arguments, rule):
    with pytest.raises(InvalidArgument, match=rule):
        Loader(split_of(10), **arguments)


def test_an_empty_split_and_a_bad_epoch_are_refused():
    with pytest.raises(InvalidArgument, match="no batch"):
        Loader(split_of(4).subset([]), 2)
    for epoch, start in [(-1, 0), (0, 3), (0, -1)]:
        with pytest.raises(InvalidArgument, match="counts from 0"):
            Loader(split_of(4), 2).epoch(epoch, start)


class Broken(Exception):
    pass


def test_an_error_in_a_worker_reaches_the_caller():
    split = split_of(8)

    def fail(numbers, transform):
        raise Broken

    split.images.pixels = fail
    with pytest.raises(Broken):
        list(Loader(split, 2, workers=2))


def test_leaving_an_epoch_early_hinders_no_later_one_and_workers_end_with_their_loader(digits):
    loader = Loader(digits.train, 64, shuffle=True, workers=2)
    for _ in loader.epoch(0):
        break
    both = zip(loader.epoch(1), loader.epoch(1), strict=True)  # two at once
    same(Loader(digits.train, 64, shuffle=True).epoch(1), [left for left, _ in both])
    ours = {p.pid for p in multiprocessing.active_children()}
    assert ours
    del loader, both, _
    gc.collect()
    assert not ours & {p.pid for p in multiprocessing.active_children()}


@pytest.mark.parametrize("mixup", [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0, "label_smoothing": 0.1}])
def test_mixed_images_are_a_function_of_the_key_and_the_same_on_two_processes(digits, mixup):
    split = digits.train.subset(range(100))
    settings = {"seed": 1, "shuffle": True, "augment": True, "drop_last": True, "mixup": mixup}
    whole = list(Loader(split, 16, **settings).epoch(2))
    same(whole[2:], Loader(split, 16, workers=2, **settings).epoch(2, start=2))
    parts = [list(Loader(split, 8, rank=r, world=2, **settings).epoch(2)) for r in (0, 1)]
    for one, left, right in zip(whole, *parts, strict=True):
        index = torch.cat([left.index, right.index])
        order = torch.stack([(one.index == n).nonzero()[0, 0] for n in index])
        assert torch.equal(one.images[order], torch.cat([left.images, right.images]))
        assert torch.equal(one.targets[order], torch.cat([left.targets, right.targets]))
    plain = next(Loader(split, 16, **{**settings, "mixup": None}).epoch(2))
    assert plain.targets is None
    assert not torch.equal(plain.images, whole[0].images)
    assert_close(whole[0].targets.sum(1), torch.ones(16))
    for wrong, rule in ((split.without_labels(), "without label"), (split, "did you mean .mixup_alpha")):
        with pytest.raises(InvalidArgument, match=rule):
            Loader(wrong, 16, mixup=mixup if rule == "without label" else {"mixup_alph": 1.0}, drop_last=True)
    with pytest.raises(InvalidArgument, match="in pairs"):
        Loader(split, 15, mixup=mixup)
    with pytest.raises(InvalidArgument, match="too few for 2 processes"):  # one pair for two
        Loader(digits.train.subset(range(18)), 8, world=2, mixup=mixup)


def test_domains_hide_target_labels_and_go_on_with_the_shorter_one():
    source, target = Loader(split_of(12), 4, shuffle=True), Loader(split_of(10), 5, shuffle=True)
    both = DomainLoader(source, target)
    assert len(both) == 3
    steps = [step for e in range(2) for step in both.epoch(e)]
    assert all(bool((s.target.labels == -1).all()) and bool((s.source.labels >= 0).all()) for s in steps)
    for start in range(0, 6, 2):
        pair = torch.cat([s.target.index for s in steps[start : start + 2]])
        assert torch.equal(pair.sort().values, torch.arange(10))
    for start in (0, 3):
        three = torch.cat([s.source.index for s in steps[start : start + 3]])
        assert torch.equal(three.sort().values, torch.arange(12))
    same([s.source for s in steps[3:]], source.epoch(1))


@pytest.mark.parametrize(("epoch", "start"), [(0, 0), (0, 2), (1, 1), (2, 2), (3, 3)])
def test_domains_resume_bit_for_bit(epoch, start):
    both = DomainLoader(
        Loader(split_of(13), 4, shuffle=True, drop_last=True),
        Loader(split_of(10).with_augment("digits"), 6, shuffle=True),
    )
    whole, tail = list(both.epoch(epoch))[start:], list(both.epoch(epoch, start))
    same([s.source for s in whole], [s.source for s in tail])
    same([s.target for s in whole], [s.target for s in tail])


def test_orders_of_two_domains_of_one_size_and_seed_are_independent():
    both = DomainLoader(Loader(split_of(200), 200, shuffle=True), Loader(split_of(200), 200, shuffle=True))
    step = next(iter(both))
    equal = (step.source.index == step.target.index).float().mean()
    assert float(equal) < 0.1
    two = both.sharded(0, 2), both.sharded(1, 2)
    assert all(len(next(iter(part)).target) == 100 for part in two)


def test_orders_are_even_over_epochs():
    loader = Loader(split_of(10), 10, shuffle=True)
    first = torch.stack([loader.order(e) for e in range(4000)])
    counts = torch.stack([(first[:, place] == first.new_tensor(3)).sum() for place in range(10)]).double()
    # 4000 draws of 1 in 10: the standard deviation is 19, five of them is a bound that chance does not pass
    assert_close(counts, torch.full((10,), 400.0, dtype=torch.float64), atol=95, rtol=0)
