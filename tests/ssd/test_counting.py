"""The paper's compute rule, on modules whose figures can be worked out on paper."""

import torch.nn.functional as F
from torch import Tensor, nn

from examples.ssd import counting


def test_a_convolution_counts_its_weights_and_its_bias_once_an_output() -> None:
    outputs = 5 * 4 * 4
    assert counting.compute(nn.Conv2d(3, 5, 3, padding=1, bias=False), 4) == outputs * 3 * 9
    assert counting.compute(nn.Conv2d(3, 5, 3, padding=1), 4) == outputs * (3 * 9 + 1)
    assert counting.compute(nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False), 4) == 3 * 4 * 4 * 9
    assert (
        counting.compute(nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), 4) == 5 * 2 * 2 * 27
    )


def test_norms_count_twice_their_input_and_activations_once() -> None:
    values = 3 * 6 * 6
    assert counting.compute(nn.BatchNorm2d(3), 6) == 2 * values
    assert counting.compute(nn.ReLU(), 6) == values
    assert counting.compute(nn.ReLU6(inplace=True), 6) == values
    assert counting.compute(nn.MaxPool2d(2), 6) == values  # its input, not its output


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.normalize(F.relu(F.relu6(x))) + x, 2)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


def test_what_is_no_module_counts_nothing() -> None:
    assert counting.compute(Functional(), 6) == 0


def test_shared_weights_count_once_as_parameters_and_as_often_as_they_run() -> None:
    assert counting.parameters(Twice()) == 9
    assert counting.compute(Twice(), 6) == 2 * 9 * 36


def test_the_module_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).train()
    counting.compute(net, 4)
    assert (
        net.training
        and next(net.parameters()).device.type == "cpu"
        and not net[1]._forward_pre_hooks
    )


def test_rounding_is_the_papers() -> None:
    assert counting.to_one_decimal(counting.two_decimals(19.145226)) == 19.2
    assert counting.to_one_decimal(counting.two_decimals(9.144)) == 9.1
