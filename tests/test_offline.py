"""Without a network: names of the hub are refused at once, what is in its cache is loaded."""

import socket
import time

import pytest
from huggingface_hub import constants
from timm.models import create_model, save_for_hf

import convsmith
from convsmith import data
from convsmith.errors import InvalidArgument
from convsmith.offline import cache_alone


@pytest.fixture
def resolver(monkeypatch, tmp_path):
    """A machine without proxies and with an empty cache, whose lookups are counted and fail."""
    asked = []

    def lookup(host, *_rest, **_settings):
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def sleep(seconds):
        pytest.fail(f"waited {seconds} s to try again")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return asked


@pytest.mark.parametrize(
    "work",
    [
        lambda: convsmith.load("resnet18"),
        lambda: convsmith.load("hf-hub:nobody/nothing"),
        lambda: data.load("hf:nobody/nothing"),
        lambda: data.load("timm:hfds/nobody/nothing"),
    ],
    ids=["timm name", "hub network", "hub data", "timm's hub data"],
)
def test_a_name_of_the_hub_is_looked_up_once_and_refused(resolver, work):
    pytest.importorskip("datasets")
    with pytest.raises(InvalidArgument, match=r"no network \(huggingface.co: Name or service not known\)"):
        work()
    assert resolver == ["huggingface.co"]
    assert not constants.HF_HUB_OFFLINE


def test_what_is_in_the_cache_is_loaded(resolver, tmp_path):
    held = tmp_path / "hub/models--me--net"
    snapshot = held / "snapshots" / ("0" * 40)
    network = create_model("cs_resnet20", num_classes=3)
    save_for_hf(network, str(snapshot), safe_serialization=True)
    (held / "refs").mkdir()
    (held / "refs/main").write_text("0" * 40)
    loaded = convsmith.load("hf-hub:me/net")
    assert loaded.model.fc.weight.equal(network.fc.weight)
    assert resolver == ["huggingface.co"]


def open_nothing():
    raise OSError("as it came")


def test_with_a_network_or_a_proxy_the_libraries_keep_their_patience(resolver, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    with cache_alone():
        assert not constants.HF_HUB_OFFLINE
    assert resolver == []
    monkeypatch.delenv("https_proxy")
    with cache_alone():
        assert constants.HF_HUB_OFFLINE
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    with cache_alone():
        assert not constants.HF_HUB_OFFLINE
    with pytest.raises(OSError, match="as it came"):
        cache_alone()(open_nothing)()
