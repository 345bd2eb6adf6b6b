"""The ring of host buffers: values, order, ownership, slots; on a CPU with plain memory."""

import numpy as np
import pytest
import torch

from livetalk_kernels.runtime.host_copies import HostRing

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES, ids=str)
def device(request) -> torch.device:
    if request.param.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return request.param


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_values_arrive_in_order_and_belong_to_the_caller(device, ahead):
    ring = HostRing(device, ahead=ahead)
    waiting, got, sent = [], [], []
    for index in range(9):
        pixels = torch.full((index % 3, 4, 5), index, dtype=torch.uint8, device=device)
        pixels = pixels.transpose(1, 2)  # not contiguous
        flags = torch.tensor([index, -index], dtype=torch.int32, device=device)
        sent.append((pixels.cpu().numpy().copy(), flags.cpu().numpy().copy()))
        waiting.append(ring.send(pixels, flags))
        while len(waiting) > ring.ahead:
            got.append(waiting.pop(0).arrays())
    got += [transfer.arrays() for transfer in waiting]
    for (pixels, flags), arrays in zip(sent, got, strict=True):
        assert np.array_equal(arrays[0], pixels) and np.array_equal(arrays[1], flags)
        assert [array.dtype for array in arrays] == [np.uint8, np.int32]


def test_what_was_received_is_not_written_to_again():
    ring = HostRing(CPU, ahead=1)
    (first,) = ring.send(torch.zeros(4)).arrays()
    for _ in range(4):
        ring.send(torch.ones(4)).arrays()
    assert not first.any()


def test_only_so_many_may_be_under_way():
    ring = HostRing(CPU, ahead=1)
    kept = [ring.send(torch.ones(1)) for _ in range(2)]
    with pytest.raises(IndexError):
        ring.send(torch.ones(1))
    kept[0].arrays()
    ring.send(torch.ones(1))


def test_a_cpu_has_nothing_to_wait_for():
    ring = HostRing(CPU)
    x = torch.ones(3)
    (array,) = ring.send(x).arrays()
    assert ring.ahead == 0 and array.ctypes.data == x.data_ptr()
