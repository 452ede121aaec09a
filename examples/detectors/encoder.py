"""An operated model as an encoder of segmentation_models_pytorch, which need not be installed."""

from torch import Tensor, nn

import stridesurgery as ss
from examples.detectors.pyramid import Pair, read_info

IMAGE_CHANNELS = 3


class Encoder(nn.Module):
    """An encoder as smp's decoders ask for it, around an operated model: [image, f1, ...].

    After "S1L0" the maps of a usual network have reductions of 1, 2, 4, 8, 16. U-Net resizes to the
    next map and then to the image, so it takes all five as they are. Other decoders count on f1
    having a reduction of 2, f2 of 4: `finest=2` leaves the first map out, and `encoder_depth` is 4
    at most.

    To have it by name, before `smp.Unet("fine", encoder_weights=None)`:

        make = lambda depth, output_stride: Encoder(model, "S1L0", depth)
        smp.encoders.encoders["fine"] = {"params": {}, "encoder": make}
    """

    def __init__(
        self,
        model: nn.Module,
        surgery: str | ss.Surgery,
        depth: int = 5,
        *,
        finest: int = 1,
        input_size: int | Pair | None = None,
    ) -> None:
        """Operate a copy of a model.

        Args:
            model: any timm or torchvision model with maps (N, C, H, W).
            surgery: which strides go, as for `ss.eliminate`.
            depth: how many maps there are, one for each reduction.
            finest: the reduction of the first; finer maps are left out.
            input_size: pixels at which the model is recorded; by default its own.

        Raises:
            ValueError: there are not as many maps.
        """
        super().__init__()
        operated = ss.eliminate(model, surgery, input_size=input_size)
        every = read_info(ss.features(operated, input_size=input_size))
        kept = [f for f in every.features if min(f.reduction) >= finest][:depth]
        if len(kept) < depth:
            reductions = ", ".join(map(str, every.reduction()))
            raise ValueError(
                f"there are {len(kept)} maps, not {depth}: reductions are {reductions}; set "
                "encoder_depth"
            )
        self.maps = ss.features(operated, [f.name for f in kept], input_size=input_size)
        info = read_info(self.maps)
        self.out_channels: list[int] = [IMAGE_CHANNELS, *info.channels()]
        self.output_stride: int = info.reduction(-1)  # sides of images are multiples of it

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) to the image and its maps."""
        return [x, *self.maps(x).values()]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Asked by smp for images of other than three channels; the model must be made for them."""
        if in_channels != IMAGE_CHANNELS:
            raise ValueError(
                f"images have {IMAGE_CHANNELS} channels here; create the model with "
                f"in_chans={in_channels}"
            )

    def make_dilated(self, output_stride: int) -> None:
        """Asked by smp for a smaller output stride, which is what the surgery was for."""
        if self.output_stride > output_stride:
            raise ValueError(
                f"the output stride is {self.output_stride}; for {output_stride} eliminate more "
                "strides, with dilate=True to keep the features"
            )
