"""`covmatch-both-encoders`: how CovMatch trains students on pairs, both encoders included.

CovMatch (Lee & Chung, NeurIPS 2025, arXiv 2510.18583), appendix on evaluation: NFNet-L0 and BERT-base at 224 px, linear
heads of 2,304; SGD at 0.01 for the encoders and 0.1 for the heads, momentum 0.9, weight decay 5e-4, batches of 128; 100
epochs, a tenth of the rates from epoch 50 on; five runs.
"""

from mmdd_ray.config import StudentForm
from mmdd_ray.protocols.protocol import PairProtocol, Training

EPOCHS, DECAYS_AFTER = 100, 50
LOOKS_AFTER = tuple(range(10, EPOCHS, 10))


def _training(pairs: int) -> Training:
    return Training.in_epochs(
        pairs, batch=128, epochs=EPOCHS, decay=0.1, decays_at=(DECAYS_AFTER,), looks_after=LOOKS_AFTER
    )


COVMATCH_BOTH_ENCODERS = PairProtocol(
    name="covmatch-both-encoders",
    source="CovMatch, Lee & Chung, NeurIPS 2025, arXiv 2510.18583",
    summary="100 epochs of SGD at 0.01 for both encoders and 0.1 for their heads, a tenth after 50; no augmentation; "
    "five students",
    differs=("the spread is the sample standard deviation",),
    unsure=(
        "in which precision students are trained: in bfloat16 here on devices that are fast in it, unless the setting "
        "`precision` is float32",
        "whether figures are those of the last epoch: looks after each tenth epoch are shown beside it",
        "how token states become a text feature: their mean here",
        "temperature 0.07 and no augmentation, as LoRS has them",
        "features are not centred before the heads",
    ),
    learning_rates=(0.1,),
    students=5,
    weight_decay=5e-4,
    trained="both-encoders",
    encoder_share=0.1,
    form=StudentForm(embed_dim=2304, centred=False),
    temperature=0.07,
    shifts=False,
    by_caption=True,
    training=_training,
)
