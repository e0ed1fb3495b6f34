"""Python's knowledge of a flag in a buffer; CPU tensors stand in for those of a device."""

import pytest
import torch

from vqvae_fast.nn.codebook import host_flag
from vqvae_fast.nn.codebook.host_flag import HostFlag


@pytest.fixture
def reads(monkeypatch):
    """As if reading waited for a device: the buffers that were read."""
    monkeypatch.setattr(host_flag, "_READ_AT_ONCE", ())
    found = []
    read = HostFlag.read
    monkeypatch.setattr(
        HostFlag, "read", lambda self, buffer: (found.append(buffer), read(self, buffer))
    )
    return found


def test_a_buffer_is_read_once(reads):
    buffer, flag = torch.tensor(True), HostFlag(False)
    assert all(flag.of(buffer) for _ in range(5))
    assert len(reads) == 1


def test_a_write_by_the_module_need_not_be_read(reads):
    buffer, flag = torch.tensor(False), HostFlag(False)
    assert not flag.of(buffer)
    flag.write(buffer, True)
    assert flag.of(buffer)
    assert buffer
    assert len(reads) == 1


def test_a_write_from_outside_is_noticed(reads):
    buffer, flag = torch.tensor(True), HostFlag(True)
    assert flag.of(buffer)
    buffer.fill_(False)
    assert not flag.of(buffer)


def test_another_tensor_is_noticed(reads):
    flag = HostFlag(True)
    assert flag.of(torch.tensor(True))
    assert not flag.of(torch.tensor(False))


def test_tensors_of_inference_mode_have_no_version(reads):
    with torch.inference_mode():
        buffer = torch.tensor(True)
    flag = HostFlag(False)
    assert flag.of(buffer)
    flag.write(torch.tensor(False), False)
    assert flag.of(buffer)


def test_the_meta_device_holds_nothing():
    for value in (True, False):
        assert HostFlag(value).of(torch.tensor(not value, device="meta")) is value
