"""`lors-frozen-text`: how LoRS and its followers train students on pairs, with the text encoder frozen.

LoRS (Xu et al., ICML 2024, arXiv 2406.01112) after MTT-VL (Wu et al., arXiv 2308.07545); figures of RepBlend (arXiv
2505.14705) and MDM are of the same kind. The paper leaves most of this to its release, whose scripts say:

- 224 px; NFNet-L0 without its classifier, its pooled features as they are; BERT-base, the last hidden state of [CLS],
  through a projection head of two layers with a residual and layer norm; temperature 0.07; no centring.
- Captions in lower case without punctuation, cut to 30 words.
- SGD at 0.1 for image encoder and text projection, momentum 0.9, weight decay 5e-4, batches of 128 with the smaller
  last one, InfoNCE; no augmentation.
- Sets with a similarity matrix, which are those of LoRS itself: the weighted BCE, each batch of 128 drawn anew from all
  pairs, as many of them in an epoch, and the rates of image encoder and text projection that were learnt with the set.
- 101 passes over the set, because its loop includes both ends; a tenth of the rate after 51.
- Eleven tests on the *test* set, after the passes 1, 11, …, 101, and the best of them by mean recall is reported. Five
  students.
"""

from mmdd_ray.config import StudentForm
from mmdd_ray.protocols.protocol import FASTER, PairProtocol, Training

EPOCHS, DECAYS_AFTER = 101, 51
LOOKS_AFTER = tuple(range(1, EPOCHS, 10))  # the last epoch is looked at in any case


def _training(pairs: int) -> Training:
    return Training.in_epochs(
        pairs, batch=128, epochs=EPOCHS, decay=0.1, decays_at=(DECAYS_AFTER,), looks_after=LOOKS_AFTER
    )


LORS_FROZEN_TEXT = PairProtocol(
    name="lors-frozen-text",
    version=2,  # which 1 differs from for sets with learnt similarities alone
    source="LoRS, Xu et al., ICML 2024, arXiv 2406.01112",
    summary="101 epochs of SGD at 0.1, or at the rates that were learnt with a set and its similarities, a tenth after "
    "51; text encoder frozen; no augmentation; five students",
    differs=(
        FASTER,
        "test images are cropped to a square, where the release squeezes them",
        "the spread is the sample standard deviation; the release divides by the number of students",
        "equal scores count against a student; the release breaks such ties by the order of the data",
    ),
    unsure=(
        "other image encoders end in their classifier's 1,000 logits there; here in their pooled features",
    ),
    learning_rates=(0.1,),
    students=5,
    weight_decay=5e-4,
    trained="frozen-text",
    form=StudentForm(
        pooling="cls", heads="text-projection", centred=False, statistics="clip", caption_words=30
    ),
    temperature=0.07,
    shifts=False,
    as_learnt=True,
    by_caption=True,
    training=_training,
)
