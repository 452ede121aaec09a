"""Models for the tests: by name, small, and awake (nothing that initialisation zeroes can hide a wrong surgery)."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

TORCHVISION = "torchvision/"

# one name for each family and each way of downsampling; "torchvision/" in front where it is
# torchvision's
SAMPLE = (
    "resnet18",
    "resnet18d",
    "seresnet18",
    "resnetblur18",
    "regnetx_002",
    "regnety_002",
    "mobilenetv1_100",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "efficientnet_lite0",
    "tf_efficientnet_b0",
    "tf_mixnet_s",
    "ghostnet_050",
    "ghostnetv2_100",
    "convnextv2_atto",
    "edgenext_xx_small",
    "hrnet_w18_small",
    "dla34",
    "test_nfnet",
    "resnetv2_18",
    "resnetv2_50x1_bit",
    "tresnet_m",
    "inception_v3",
    "inception_next_atto",
    "poolformer_s12",
    "pvt_v2_b0",
    "fastvit_t8",
    "repvgg_a0",
    "lcnet_035",
    "rexnet_100",
    "densenet121",
    "cspresnet50",
    "selecsls42",
    "skresnet18",
    "ese_vovnet19b_dw",
    "starnet_s1",
    "torchvision/alexnet",
    "torchvision/squeezenet1_1",
    "torchvision/googlenet",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/mnasnet0_5",
    "torchvision/mobilenet_v2",
    "torchvision/convnext_tiny",
    "torchvision/swin_t",
    "torchvision/swin_v2_t",
    "torchvision/resnet18",
)


# a size in pixels that every stride divides and at which nothing shrinks to less than a cell
SIZES = {"inception_v3": 192, "selecsls42": 128, "ghostnetv2_100": 128}


def size_of(name: str) -> int:
    return SIZES.get(name, 64)


def create(name: str, **options: object) -> nn.Module:
    """A model with random weights, the same at every call, in eval mode and awake."""
    torch.manual_seed(0)
    if name.startswith(TORCHVISION):
        extra = {"init_weights": False} if name.endswith(("googlenet", "inception_v3")) else {}
        model = torchvision.models.get_model(
            name.removeprefix(TORCHVISION), weights=None, **extra, **options
        )
    else:
        model = timm_model(name, **options)
    return awake(model).eval()


def timm_model(name: str, **options: object) -> nn.Module:
    """Create a model of timm; a test of one that this timm has not is skipped."""
    if not timm.is_model(name):
        pytest.skip(f"too new: timm {timm.__version__} has no {name}")
    return timm.create_model(name, **options)


def awake(model: nn.Module, seed: int = 1) -> nn.Module:
    """The same model with every vector of parameters (norms, biases, scales, gains) and every statistic random.

    Norms that end a residual branch start at zero, layer scales near it, running statistics at (0,
    1).
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.squeeze().dim() <= 1:
                draw(parameter, *((-0.2, 0.2) if name.endswith("bias") else (0.7, 1.3)))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                draw(buffer, -0.2, 0.2)
            if name.endswith("running_var"):
                draw(buffer, 0.7, 1.3)
    return model


def image(*size: int, batch: int = 1, seed: int = 2) -> Tensor:
    """Random pixels (batch, 3, h, w)."""
    h, w = size if len(size) == 2 else size * 2
    return torch.randn(batch, 3, h, w, generator=torch.Generator().manual_seed(seed))
