"""`soft-label`: how RDED and its followers train classifiers on a teacher's answers.

RDED (Sun et al., CVPR 2024, arXiv 2312.03526). Its validation script says:

- The target of each mixed batch is the teacher's own answer to it: softmax of its logits over 20; the loss is the
  Kullback-Leibler divergence from the student's at the same temperature, a mean over the batch, without a factor of the
  temperature squared.
- ResNet-18 with batch norm, as the teacher; ImageNet's statistics; random resized crops of half to all of the area,
  mirrors; every batch mixed by CutMix with a share drawn from Beta(1, 1).
- AdamW at 1e-3, weight decay 0.01 on matrices and kernels alone, 300 epochs, the rate falling to half along the first
  half of a cosine.
- Batches of 10, 50 and 100 for 1, 10 and 50 images per class, twice that for 100 and 1,000 classes, at most the whole
  set.
- Tests on the validation set after each tenth epoch of the last fifth, the best of which is reported.
"""

from mmdd_ray.protocols.protocol import FASTER, LabelProtocol, Training

EPOCHS = 300
LOOKS_AFTER = tuple(range(250, EPOCHS, 10))
IMAGENET_TEACHER = "hf://timm/resnet18.tv_in1k/model.safetensors"
"""torchvision's ResNet-18, RDED's teacher of ImageNet-1K; its classes are in the order of the folders' names."""
DOUBLED = (100, 1000)  # numbers of classes with twice the batch


def batch_of(per_class: int, classes: int) -> int:
    """Images in a step for a set of so many images per class."""
    batch = 10 if per_class < 10 else 50 if per_class < 50 else 100
    return 2 * batch if classes in DOUBLED else batch


def _training(images: int, classes: int) -> Training:
    return Training.in_epochs(
        images,
        batch=batch_of(round(images / classes), classes),
        epochs=EPOCHS,
        half_cosine=True,
        looks_after=LOOKS_AFTER,
    )


SOFT_LABEL = LabelProtocol(
    name="soft-label",
    source="RDED, Sun et al., CVPR 2024, arXiv 2312.03526",
    summary="300 epochs of AdamW at 1e-3 on a teacher's answers at temperature 20; crops, CutMix on every batch; three "
    "classifiers",
    differs=(
        FASTER,
        "the parts of an image are not shuffled: RDED's images are mosaics of four, others are not",
        "test images are cropped to squares of their shorter side; the release then keeps the middle seven eighths",
        "all test images count, up to evaluation.max_pairs; for subsets of ImageNet with 10 and 100 classes the "
        "release takes 50 of each class",
        "CIFAR-100 with ConvNet-3 is no exception here; the release has batches of 25 and a rate of 2e-3 for it",
        "Tiny-ImageNet has batches by images per class, as all others; the release has 100 for any number",
        "the release passes each batch through the student a second time, which moves the statistics of batch norm "
        "twice as fast",
    ),
    unsure=(
        "how good a teacher has to be: classifiers.teacher names one; otherwise the run trains one with hard labels, "
        "crops and mirrors, for classifiers.teacher_steps",
        "batches for other numbers of images per class than 1, 10 and 50: those of the next smaller one",
        "the number of repeats: three here",
    ),
    learning_rates=(0.001,),
    students=3,
    weight_decay=0.01,
    norm="batch",
    statistics="imagenet",
    augmentation="crop",
    mirrors=True,
    cutmix=1.0,
    temperature=20.0,
    optimizer="adamw",
    training=_training,
)
