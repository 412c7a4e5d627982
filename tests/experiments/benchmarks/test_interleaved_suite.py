"""The suite's naive pair is the definition, and the suite runs to a complete record."""

import os
import platform

import pytest
import torch

from convsmith.compression import InterleavedGroupConv2d, composite_kernel
from experiments.benchmarks.contract import Bench
from experiments.benchmarks.interleaved import KEEP_PAGES, _faults, _in_another_process, _pair, naive_pair


def test_the_naive_pair_is_the_composite_in_both_layouts():
    chain = InterleavedGroupConv2d(4, 3, 1)
    x = torch.randn(2, 12, 5, 5)
    expected = torch.nn.functional.conv2d(x, composite_kernel(chain))
    torch.testing.assert_close(naive_pair(x, chain), expected, rtol=1e-5, atol=1e-5)
    last = naive_pair(x.contiguous(memory_format=torch.channels_last), chain)
    torch.testing.assert_close(last, expected, rtol=1e-5, atol=1e-5)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_a_small_case_holds_every_backend_and_the_choice():
    bench = Bench(quick=True)
    with torch.no_grad():
        for layout in ("channels first", "channels last"):
            _pair(bench, 12, 4, 2, 4, 3, layout)
    first, last = bench.cases
    assert {"ours, group", "ours, matmul", "ours, dense", "ours, auto"} <= set(first.arms)
    assert (first.settings["auto is"], last.settings["auto is"]) == ("matmul", "group")
    assert first.settings["freed pages are"] == "as the C library decides"
    assert first.settings["page faults of a call"].endswith("(auto)")
    assert first.settings["MACs"] == 2 * 16 * (4 * 9 + 3 * 16)
    assert len(last.arms) >= len(first.arms)


@pytest.mark.slow
def test_pages_are_kept_in_the_other_process_and_its_cases_come_back():
    if any(name in os.environ for name in KEEP_PAGES):
        pytest.skip("this process keeps its pages already")
    if not _faults():
        pytest.skip("the system does not count page faults")
    cases = _in_another_process(Bench(quick=True))
    assert [case.name.rsplit(", ", 2)[1:] for case in cases] == [
        ["channels first", "pages kept"],
        ["channels last", "pages kept"],
    ]
    for case in cases:
        assert case.settings["freed pages are"] == "kept"
        assert case.arms["ours, auto"].calls >= 3
        assert case.ratios[case.baseline] == (1.0, 1.0, 1.0)
        if platform.libc_ver()[0] == "glibc":  # a call of the naive pair makes four results of 1,568 pages each
            assert int(case.settings["page faults of a call"].split()[0]) < 400
