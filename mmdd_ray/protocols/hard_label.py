"""`hard-label`: how Minimax Diffusion, VLCP and others train classifiers on small sets of 224 px.

Minimax Diffusion (Gu et al., CVPR 2024, arXiv 2311.15529), whose training script goes back to IDC (Kim et al., ICML
2022). The script says:

- ResNetAP-10 (or ConvNet-6, ResNet-18) with instance norm; ImageNet's channel statistics.
- Random resized crops of half to all of the area, mirrors, colour jitter of 0.4 in brightness, contrast and saturation
  in random order, AlexNet's lighting of 0.1; every batch mixed by CutMix with a share drawn from Beta(1, 1).
- SGD at 0.01, momentum 0.9, weight decay 5e-4, batches of 64 with the smaller last one; above 100 classes 0.1, 1e-4 and
  128.
- Epochs by images per class: 3,000 for 1, 2,000 up to 10, 1,500 up to 50, 1,000 up to 200, 500 up to 500, then 300; two
  thirds of that, rounded down to hundreds, for 100 classes. A fifth of the rate after 2/3 and after 5/6 of them.
- A hundred tests on the validation set, the best of which is reported; three repeats.
"""

from mmdd_ray.protocols.protocol import FASTER, LabelProtocol, Training

LOOKS = 100
EPOCHS_BY_IMAGES = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))
EPOCHS_ABOVE = 300
MANY_CLASSES = 100  # above which rate, weight decay and batch are those of ImageNet-1K


def epochs_of(per_class: int, classes: int) -> int:
    """Epochs for a set of so many images per class."""
    epochs = next((epochs for most, epochs in EPOCHS_BY_IMAGES if per_class <= most), EPOCHS_ABOVE)
    return 2 * epochs // 3 // 100 * 100 if classes == MANY_CLASSES else epochs


def _training(images: int, classes: int) -> Training:
    epochs = epochs_of(round(images / classes), classes)
    every = epochs // LOOKS
    return Training.in_epochs(
        images,
        batch=128 if classes > MANY_CLASSES else 64,
        epochs=epochs,
        decay=0.2,
        decays_at=(2 * epochs // 3, 5 * epochs // 6),
        looks_after=tuple(range(every, epochs, every)),
    )


def _rate(rate: float, classes: int) -> float:
    return 0.1 if classes > MANY_CLASSES else rate


def _weight_decay(weight_decay: float, classes: int) -> float:
    return 1e-4 if classes > MANY_CLASSES else weight_decay


HARD_LABEL = LabelProtocol(
    name="hard-label",
    source="Minimax Diffusion, Gu et al., CVPR 2024, arXiv 2311.15529",
    summary="300 to 3,000 epochs of SGD by images per class, a fifth of the rate after 2/3 and 5/6; crops, colour "
    "jitter, CutMix on every batch; hard labels; three classifiers",
    differs=(
        FASTER,
        "the spread is the sample standard deviation",
        "training images are cropped from squares of the classifier's size, as the script does where it keeps images "
        "in memory",
    ),
    learning_rates=(0.01,),
    students=3,
    weight_decay=5e-4,
    norm="instance",
    statistics="imagenet",
    augmentation="crop-jitter",
    mirrors=True,
    cutmix=1.0,
    training=_training,
    rate_of=_rate,
    decay_of=_weight_decay,
)
