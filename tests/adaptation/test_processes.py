"""Two gloo processes do what one does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.adaptation import processes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([f"{ROOT}/src", str(ROOT)]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "tests.adaptation.processes", str(out)]
    started = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        for process in started:
            _, complaint = process.communicate(timeout=120)
            assert process.returncode == 0, complaint.decode()
    finally:
        for process in started:
            process.kill()
    return out


@pytest.mark.parametrize("job", processes.JOBS)
def test_weights_after_ten_steps_agree(together, job):
    one = processes.train(job, 0, 1).state_dict()
    first, second = (load_file(together / f"{job}-{rank}.safetensors") for rank in range(2))
    before = processes.network().state_dict()
    assert max(float((one[f"model.{k}"] - v).abs().max()) for k, v in before.items()) > 1e-2
    for name, value in one.items():
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)
        # sums over processes round otherwise than sums over one batch: some units in the last place a step, and losses
        # with exponentials of distances pass them on enlarged
        tolerance = 10 * processes.STEPS * torch.finfo(torch.float32).eps
        torch.testing.assert_close(
            first[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
