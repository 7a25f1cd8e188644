"""The classifiers of the dataset-distillation literature, from scratch, with instance or batch normalisation.

ConvNet-d as in dataset condensation (Zhao, Mopuri & Bilen, ICLR 2021); ResNetAP-10 as in IDC (Kim et al., ICML 2022)
and its followers, where average pooling stands in place of strides; ResNet-18 (He et al., CVPR 2016).
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from mmdd_ray.config import Classifiers

SMALL_PX, MEDIUM_PX = (
    64,
    128,
)  # up to here ResNets begin with a convolution of 3 x 3 alone, or with half of the side


NormLayer = Callable[[int], nn.Module]


def build_classifier(
    settings: Classifiers, n_classes: int, norm: Literal["instance", "batch"] = "instance"
) -> nn.Module:
    """A network of images (B, 3, px, px), normalised, that gives logits (B, n_classes). Draws from torch's generator.

    Raises:
        UserError: the images are too small for so many poolings.
    """
    norm_layer: NormLayer = nn.BatchNorm2d if norm == "batch" else _instance_norm
    if settings.poolings is not None:
        return _convnet(settings, settings.poolings, n_classes, norm_layer)
    if settings.model == "resnet-ap-10":
        return _resnet(_PooledBlock, [1, 1, 1, 1], settings.image_px, n_classes, norm_layer)
    return _resnet(BasicBlock, [2, 2, 2, 2], settings.image_px, n_classes, norm_layer)


def _instance_norm(channels: int) -> nn.Module:
    """Instance norm with scale and shift, and without running statistics: a group of each channel.

    InstanceNorm2d is the same, but a third slower on CPUs. Both want the usual memory order: in channels-last order
    this one's gradient takes fifteen times as long there.
    """
    return nn.GroupNorm(channels, channels)


class _Pool(nn.AvgPool2d):
    """Means of 2 x 2 pixels on CPUs as two sums of halves, in a third of the time; otherwise as torch has it.

    Its kernel there is not vectorised in the usual memory order.
    """

    def forward(self, x: Tensor) -> Tensor:
        *others, height, width = x.shape
        if self.kernel_size != 2 or x.device.type != "cpu" or height % 2 or width % 2:
            return super().forward(x)
        rows = x.reshape(*others, height // 2, 2, width)
        both = (rows[..., 0, :] + rows[..., 1, :]).reshape(*others, height // 2, width // 2, 2)
        return (both[..., 0] + both[..., 1]) / 4


def _convnet(settings: Classifiers, depth: int, n_classes: int, norm_layer: NormLayer) -> nn.Module:
    side = settings.image_px >> depth
    layers: list[nn.Module] = []
    for channels in [3, *[settings.width] * (depth - 1)]:
        layers += [
            nn.Conv2d(channels, settings.width, 3, padding=1),
            norm_layer(settings.width),
            nn.ReLU(inplace=True),
            _Pool(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(settings.width * side**2, n_classes))


def _resnet(
    block: type[BasicBlock], blocks: list[int], image_px: int, n_classes: int, norm_layer: NormLayer
) -> nn.Module:
    network = ResNet(block, blocks, num_classes=n_classes, norm_layer=norm_layer)
    is_pooled = block is _PooledBlock
    if image_px <= MEDIUM_PX:
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity() if image_px <= SMALL_PX else _Pool(2)
    elif is_pooled:
        network.conv1 = nn.Conv2d(3, 64, 7, padding=3, bias=False)
        network.maxpool = _Pool(4)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as the others are
    if is_pooled:
        for module in network.modules():
            if isinstance(module, _PooledBlock) and isinstance(module.downsample, nn.Sequential):
                module.downsample = _pooled_shortcut(module.downsample)
    return network


def _pooled_shortcut(strided: nn.Sequential) -> nn.Sequential:
    convolution, norm = strided.children()
    assert isinstance(convolution, nn.Conv2d)
    stride, convolution.stride = convolution.stride[0], (1, 1)
    return nn.Sequential(convolution, _Pool(stride), norm)


class _PooledBlock(BasicBlock):  # type: ignore[misc]  # timm has no types
    """A basic block that pools after its first activation where the other one would have a stride."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__(inplanes, planes, 1, downsample, groups, base_width, dilation, norm_layer)
        self.pool = _Pool(stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.pool(self.relu(self.bn1(self.conv1(x))))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))
