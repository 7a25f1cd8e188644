"""The augmentation of images by the protocols for labels. No Ray."""

# B images, C channels

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from mmdd_ray.engine.devices import moved

CROP_AREA = (0.5, 1.0)  # of a random resized crop, as a share of the image
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10  # as torchvision has it; then the image stays whole
JITTER = 0.4  # of brightness, contrast and saturation
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
LIGHTING = 0.1
LIGHTING_VALUES = (
    0.2175,
    0.0188,
    0.0045,
)  # of the covariance of ImageNet's colours (Krizhevsky et al., NeurIPS 2012)
LIGHTING_VECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def draw_crops(n: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes of random resized crops of squares: (n, 4) float64 shares of the side, as left, top, width and height.

    The area is uniform in `CROP_AREA`, the logarithm of the ratio of width to height in that of `CROP_RATIO`; drawn
    again while the box does not fit.
    """
    log_ratio = np.log(CROP_RATIO)
    boxes_N4 = np.tile(np.array([0.0, 0.0, 1.0, 1.0]), (n, 1))
    for box in boxes_N4:
        for _ in range(CROP_TRIES):
            area, ratio = rng.uniform(*CROP_AREA), math.exp(rng.uniform(*log_ratio))
            width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if width <= 1 and height <= 1:
                box[:] = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height), width, height
                break
    return boxes_N4


def cropped(image_BCHW: Tensor, boxes_B4: np.ndarray) -> Tensor:
    """The box of each image, resized bilinearly to the size of the whole; floats."""
    left_B, top_B, width_B, height_B = torch.from_numpy(boxes_B4.astype(np.float32)).T
    zeros_B = torch.zeros_like(left_B)
    # grid_sample counts from -1 to 1
    rows = [
        torch.stack([width_B, zeros_B, 2 * left_B + width_B - 1], dim=1),
        torch.stack([zeros_B, height_B, 2 * top_B + height_B - 1], dim=1),
    ]
    theta_B23 = moved(torch.stack(rows, dim=1), str(image_BCHW.device))
    grid_BHW2 = affine_grid(theta_B23, list(image_BCHW.shape), align_corners=False)
    return grid_sample(image_BCHW, grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False)


def jittered(image_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Images in [0, 1] with other brightness, contrast and saturation, each in an order of its own, and other lighting.

    Brightness goes towards black, contrast towards the image's mean grey, saturation towards its greys, or away from
    them, by up to `JITTER`. Lighting adds a multiple of the principal components of natural colours.
    """
    n, device = len(image_BCHW), image_BCHW.device
    strength_B3 = torch.from_numpy(rng.uniform(-JITTER, JITTER, (n, 3)).astype(np.float32)).to(device)
    order_B3 = torch.from_numpy(np.argsort(rng.random((n, 3)), axis=1)).to(device)
    weights_C11 = torch.tensor(GREY, device=device)[:, None, None]
    for place in range(3):
        grey_B1HW = (image_BCHW * weights_C11).sum(dim=1, keepdim=True)
        towards = (
            torch.zeros_like(image_BCHW),
            grey_B1HW.mean(dim=(2, 3), keepdim=True).expand_as(image_BCHW),
            grey_B1HW.expand_as(image_BCHW),
        )
        kind_B = order_B3[:, place]
        strength_B111 = strength_B3.gather(1, kind_B[:, None])[:, :, None, None]
        target_BCHW = torch.stack(towards)[kind_B, torch.arange(n, device=device)]
        image_BCHW = image_BCHW.lerp(target_BCHW, strength_B111)
    amount_B3 = rng.normal(0, LIGHTING, (n, 3)) * np.array(LIGHTING_VALUES)
    colour_B3 = amount_B3 @ np.array(LIGHTING_VECTORS).T
    return image_BCHW + torch.from_numpy(colour_B3.astype(np.float32)).to(device)[:, :, None, None]
