"""Memory is used again only when nothing can see it any more; whatever still holds a result keeps it."""

import gc
import threading

import numpy as np
import pytest
import torch

from convsmith.compression.operators import buffers

SHAPE = (4, 64, 24, 24)  # 589,824 bytes in float32
LIKE = torch.empty(0)


@pytest.fixture(autouse=True)
def fresh():
    buffers.release()
    yield
    buffers.release()


def test_a_dropped_result_leaves_its_memory_to_the_next():
    first = buffers.empty(SHAPE, LIKE)
    place = first.data_ptr()
    del first
    second = buffers.empty(SHAPE, LIKE)
    assert second.data_ptr() == place
    assert second.shape == SHAPE
    assert second.is_contiguous()
    assert not second._is_view()


HOLDERS = {
    "the tensor": lambda t: t,
    "a view": lambda t: t[1:, 3],
    "a detached one": lambda t: t.detach(),
    "an array": lambda t: t.numpy(),
    "a dlpack import": lambda t: torch.from_dlpack(t),
    "the storage": lambda t: t.untyped_storage(),
    "a graph": lambda t: t * torch.ones((), requires_grad=True),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_whatever_holds_a_result_keeps_it(holder):
    first = buffers.empty(SHAPE, LIKE).fill_(1)
    place = first.data_ptr()
    held = HOLDERS[holder](first)
    del first
    assert buffers.empty(SHAPE, LIKE).data_ptr() != place
    del held
    gc.collect()
    two = [buffers.empty(SHAPE, LIKE), buffers.empty(SHAPE, LIKE)]
    assert place in {t.data_ptr() for t in two}


def test_memory_sent_to_another_process_is_not_used_again():
    first = buffers.empty(SHAPE, LIKE).share_memory_()
    place = first.data_ptr()
    del first
    assert buffers.empty(SHAPE, LIKE).data_ptr() != place


def test_layouts_dtypes_and_sizes():
    last = buffers.empty(SHAPE, LIKE, torch.channels_last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    double = buffers.empty((1 << 17,), LIKE.double())
    assert double.dtype == torch.float64
    assert double.untyped_storage().nbytes() == 1 << 20
    assert buffers.empty((3, 5), LIKE).shape == (3, 5)  # too small to be kept
    assert buffers.kept_bytes() == 589_824 + (1 << 20)
    assert buffers.empty(SHAPE, torch.empty(0, device="meta")).device.type == "meta"


def test_what_is_kept_stays_below_the_limit(monkeypatch):
    monkeypatch.setattr(buffers, "LIMIT_BYTES", 3 << 20)
    held = buffers.empty((1 << 18,), LIKE)
    for extra in range(8):
        buffers.empty(((1 << 18) + 64 * extra,), LIKE)
        assert buffers.kept_bytes() <= 3 << 20
    others = [buffers.empty((1 << 18,), LIKE) for _ in range(4)]  # more than there is room for
    assert len({t.data_ptr() for t in [held, *others]}) == 5
    assert buffers.kept_bytes() <= 3 << 20
    assert buffers.empty((1 << 20,), LIKE).numel() == 1 << 20  # larger than the limit


def test_threads_never_share_a_result():
    wrong = []

    def work(value):
        for _ in range(60):
            t = buffers.empty(SHAPE, LIKE).fill_(value)
            if not np.all(t.numpy() == value):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_inference_mode_does_not_mark_the_memory():
    with torch.inference_mode():
        place = buffers.empty(SHAPE, LIKE).data_ptr()
    t = buffers.empty(SHAPE, LIKE)
    assert t.data_ptr() == place
    assert not t.is_inference()
    t.zero_().mul_(torch.ones((), requires_grad=True)).sum().backward()
