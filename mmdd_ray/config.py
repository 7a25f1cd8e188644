"""Typed settings: frozen dataclasses with a docstring per field; no torch and no ray, so --help is instant.

A job's preset is a function that returns one of these; see ``jobs/``. Sizes carry their unit in their name.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import tyro
from annotated_types import Ge, Gt, Le, Lt, MinLen

from mmdd_ray.errors import UserError

Count = Annotated[int, Ge(1)]
Weight = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Rate = Annotated[float, Ge(0), Lt(1)]
Precision = Literal["auto", "float32", "bfloat16"]
CORESETS = ("random", "herding", "k-center", "clip-score")
"""Real pairs that ``match.init`` has names for. Whatever else it says is the place of a distilled set."""


def operational(default: Any) -> Any:
    """A field that says how to run, not what comes out: it may change when a run is resumed."""
    return field(default=default, metadata={"affects_result": False})


def extending(default: Any) -> Any:
    """A field that says how much is made: with another value a run keeps what it has, and makes what is missing."""
    return field(default=default, metadata={"affects_result": False, "extends": True})


def _share(setting: str, batch: int, workers_setting: str, workers: int) -> int:
    if batch % workers:
        raise UserError(
            f"{setting}={batch} cannot be shared by {workers_setting}={workers}; make it a multiple"
        )
    return batch // workers


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run lives and how it behaves as a whole."""

    dir: str | None = operational(None)
    """Run directory, a local path or an s3:// URI. Default: runs/<job>-<preset>."""
    seed: Annotated[int, Ge(0)] = 0
    """Root of every random choice: each sample, model and split derives its own seed from it."""
    ray_address: str | None = operational(None)
    """Ray cluster to join ("auto" or host:port). Default: that of the environment, or a local one."""
    max_cpus: Count | None = operational(None)
    """CPUs that the cluster may grow to, where it scales by itself. Default: those it has when the run starts."""
    max_gpus: Annotated[int, Ge(0)] | None = operational(None)
    """GPUs that the cluster may grow to. A cluster that begins without GPUs would be taken for one that has none."""
    num_cpus: Count | None = operational(None)
    """CPUs of the local Ray that is started when there is no cluster. Default: all cores."""
    object_store_mib: Annotated[int, Ge(80)] = operational(512)
    """Shared-memory object store of that local Ray, in MiB."""
    stall_minutes: Positive = operational(30.0)
    """A stage that streams data and gets no further for so long stops, to be resumed: a shard that hangs, or machines
    that do not come."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will cost, printed before it starts."""

    show: Annotated[bool, tyro.conf.arg(name="plan", prefix_name=False)] = operational(False)
    """Print the plan of the run, and stop."""
    like: str | None = operational(None)
    """Run directory whose times the plan is made from. Default: figures of the local preset, on two CPU cores."""
    cpus: Count | None = operational(None)
    """Plan for a cluster with so many CPUs. Default: the one that the run would join, grown, or this machine."""
    gpus: Annotated[int, Ge(0)] | None = operational(None)
    """Plan for a cluster with so many GPUs."""
    gpu_hour_price: Weight = operational(0.0)
    """Price of an hour of one GPU, in any currency."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """A source of image-caption pairs."""

    uri: str
    """WebDataset tars (brace ranges and globs), Parquet, COCO or Karpathy JSON, an image folder, or
    shapes:ROWS?seed=S (docs/world.md). Local paths, s3://, gs:// and hf:// work alike."""
    image_root: str | None = None
    """Folder of the image files, for COCO and Karpathy JSON. Default: the folder of the JSON file."""
    split: str | None = None
    """Split to keep, for Karpathy JSON ("train" also takes "restval"). Default: all."""
    image_column: str = "image"
    """Parquet column with the encoded image: binary, or Hugging Face's {bytes, path} struct."""
    caption_columns: tuple[str, ...] = ("captions", "caption", "text")
    """Parquet columns or JSON keys that may hold captions, a string or a list. The first column that is there
    is read; in tars the first key that is not blank, or else the .txt member."""
    needs_captions: bool = True
    """Whether images without a caption are refused. VLCP can do with their labels, and names for these."""
    key_column: str = "key"
    """Parquet column with unique keys. If there is no "key", keys are made of file name and row number; a column
    asked for by another name must be there."""
    label_column: str = "label"
    """Parquet column or JSON key with the integer class; in tars, where no JSON has it, the .cls member. If there is no
    "label", there are no classes; a Parquet column asked for by another name must be there."""
    limit: Count | None = None
    """Read at most this many pairs (whole shards first, then rows). Default: all."""
    rows_per_shard: Count = 1000
    """Shard size of sources that have no shards of their own (JSON, image folder, shapes)."""
    max_image_pixels: Count = 50_000_000
    """Images that declare more pixels than this are rejected before they are decoded."""
    max_member_mib: Count = 64
    """Tar members and image files larger than this are rejected unread; Parquet cells, which come with their
    batch of rows, once they are read."""
    max_caption_chars: Count = 10_000
    """Longer captions are rejected."""
    max_reject_ratio: Annotated[float, Ge(0), Le(1)] = 0.2
    """The run stops when more than this share of the rows had to be rejected, or of the files of a brace range are not
    there."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A pool of actors."""

    min_actors: Count = operational(1)
    """Smallest number of actors."""
    max_actors: Count = operational(1)
    """Largest number of actors; Ray adds actors (and the autoscaler machines) up to here."""
    gpus_per_actor: Weight = operational(1.0)
    """Share of a GPU for each actor; ignored on clusters without GPUs."""


@dataclass(frozen=True, kw_only=True)
class Features(Pool):
    """CLIP features of every pair and the moments of their distribution."""

    clip: str = "tiny-clip"
    """CLIP model of features, losses and selection: a zoo name, an open_clip "MODEL/PRETRAINED" such as
    "ViT-B-32/laion2b_s34b_b79k", "hf-hub:ORG/REPO", or "local-dir:/FOLDER"."""
    image_px: Count = 32
    """Side to which images are decoded for CLIP; its own input size is best."""
    chunk_pairs: Count = 256
    """Images encoded and written together; one output file each."""
    clip_score_fraction: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of the real pairs, those whose image and caption agree best by CLIP, whose moments are matched: in EDGE's
    selection among candidates, and by CovMatch, whose real batches leave out the others. Below 1 where captions are
    noisy."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Data-parallel training on Ray Train."""

    workers: Count = 1
    """Data-parallel workers."""
    gpus_per_worker: Weight = operational(1.0)
    """GPUs of each worker; ignored on clusters without GPUs."""
    max_failures: Annotated[int, Ge(-1)] = operational(3)
    """Times that workers may be lost before the training gives up, to be resumed; -1: it never does. Machines that
    were drained because a cloud takes them back do not count (`ray drain-node`, which somebody has to call)."""


@dataclass(frozen=True, kw_only=True)
class Finetune(Training):
    """Fine-tuning of a text-to-image diffusion model."""

    generator: str = "tiny-sd"
    """Text-to-image model to start from: a zoo name, a hub name, or a StableDiffusionPipeline folder."""
    image_px: Count = 32
    """Side of the images the generator sees and draws."""
    steps: Annotated[int, Ge(0)] = 60
    """Optimiser steps; 0 keeps the generator as it is."""
    batch_pairs: Annotated[int, Ge(2)] = 32
    """Pairs in a step, over all workers. They are each other's negatives where the loss contrasts them."""
    accumulate: Count = 1
    """Batches whose gradients are averaged before each optimiser step."""
    parameters: Literal["difffit", "lora", "full"] = "difffit"
    """What is trained: biases, norms and scale factors; low-rank adapters; or the whole UNet."""
    lora_rank: Count = 8
    """Rank of the adapters of "lora"."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser; EDGE's authors use SGD, VLCP's AdamW."""
    learning_rate: Positive = 1e-3
    """Learning rate."""
    momentum: Rate = 0.9
    """Momentum of SGD."""
    max_grad_norm: Weight = 1.0
    """Gradients are scaled down to this norm; 0 switches it off."""
    ema_decay: Rate = 0.99
    """Decay of the averaged weights that synthesis uses; 0 switches averaging off."""
    checkpoint_steps: Count = operational(50)
    """Steps between checkpoints, from which an interrupted run goes on."""

    @property
    def pairs_per_worker(self) -> int:
        """A worker's share of a batch; raises ``UserError`` when the batch cannot be shared evenly."""
        return _share("finetune.batch_pairs", self.batch_pairs, "finetune.workers", self.workers)


@dataclass(frozen=True, kw_only=True)
class EdgeFinetune(Finetune):
    """EDGE's fine-tuning of the generator (arXiv 2509.15472, section 3)."""

    space: Literal["clip", "latent"] = "clip"
    """Where the losses look: CLIP embeddings of the decoded image, or a projection of the latent."""
    contrastive_weight: Weight = 1.0
    """Lambda_C, weight of the bidirectional contrastive loss."""
    diversity_weight: Weight = 1.0
    """Lambda_D, weight of the diversity loss."""
    noise_weight: Weight = 0.0
    """Lambda_N, weight of the denoising loss of ordinary diffusion training (0 in the authors' release)."""
    temperature: Positive = 0.1
    """Temperature of the contrastive loss."""
    max_timestep_fraction: Annotated[float, Gt(0), Le(1)] = 0.5
    """Noise levels are drawn from the first part of the schedule only: at its end, recovering the clean
    latent divides by almost zero."""


@dataclass(frozen=True, kw_only=True)
class Synthesis(Pool):
    """Drawing images with the generator."""

    inference_steps: Count = 20
    """DPM-Solver++ steps an image."""
    guidance: Weight = 3.0
    """Classifier-free guidance scale; 1 switches guidance off."""
    batch_images: Count = 50
    """Images drawn together. Batches are cut by sample index, so this setting is part of the result."""


@dataclass(frozen=True, kw_only=True)
class EdgeSynthesis(Synthesis):
    """Drawing images from captions."""

    pairs: Count = 100
    """Image-caption pairs of the distilled set; an image with c captions counts as c pairs."""
    prompts: Literal["random", "k-means"] = "k-means"
    """Real captions to draw from: random ones, or one for each k-means cluster of CLIP's text features."""
    candidates_per_image: Count = 1
    """Images drawn for each one kept, each from a caption of its own. Above 1, the subset is kept whose moments match
    the real data best."""
    clip_score_fraction: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of these images, those that agree best with their captions by CLIP, from which that subset is chosen; the
    others are failed drawings, and drawings of captions that say little. At 1 / candidates_per_image the score alone
    decides."""
    mean_weight: Weight = 1.0
    """Weight of the means against the cross-covariance in that selection."""


@dataclass(frozen=True, kw_only=True)
class Captions(Pool):
    """Further captions, written by a vision-language model that looks at the synthetic images."""

    model: str = "tiny-captioner"
    """Captioner: a zoo name, a hub name or a folder of any transformers model that describes images."""
    per_image: Count = 2
    """Captions of each image: the prompt it was drawn from and per_image - 1 written ones."""
    instructions: Annotated[tuple[str, ...], MinLen(1)] = ("Describe the image in one sentence.",)
    """What a chat model is asked, one instruction per further caption, in turn. Others ignore it."""
    max_new_tokens: Count = 48
    """Length limit of a written caption, in tokens."""
    batch_images: Count = 50
    """Images captioned together."""


@dataclass(frozen=True, kw_only=True)
class Describe(Pool):
    """VLCP's descriptions of real images (arXiv 2506.23580, section 3)."""

    source: Literal["captions", "vlm", "template"] = "captions"
    """Where descriptions come from: the data's own captions, a vision-language model, or a template."""
    template: str = "a photo of a {class_name}"
    """Description of every image under "template", and of one that the model has nothing to say of. The sets that
    are drawn without text prototypes are prompted with it."""
    class_names: str | None = None
    """Text file, a local path or a URI, with the name of a class on each line, from class 0 on. Default: the one
    caption that the images of a class share, as in image folders; labelled shapes have their own."""
    model: str = "tiny-captioner"
    """The model of "vlm": a zoo name, a hub name or a folder of any transformers model that describes images."""
    instruction: str = (
        "Describe the physical appearance of the {class_name} in the image: its shape, posture, colour and distinct "
        "features."
    )
    """What a chat model is asked. Others ignore it; see prefix."""
    prefix: str = ""
    """Text before every caption of the data and every description that a model wrote; {class_name} is the name of the
    class. For captions that do not name it, and captioners, which cannot be asked about it."""
    max_new_tokens: Count = 160
    """Length limit of a description, in tokens."""
    image_px: Count = 32
    """Side to which images are decoded for the model."""
    chunk_images: Count = 64
    """Images described together; one output file each."""


@dataclass(frozen=True, kw_only=True)
class Prototypes(Pool):
    """VLCP's image and text prototypes of each class."""

    images_per_class: Count = 10
    """Prototypes, and so images, of each class of the distilled set (IPC)."""
    neighbours: Count = 10
    """Neighbours of the Local Outlier Factor that drops outliers."""
    contamination: Rate = 0.1
    """Share of a class's images that are dropped as outliers."""
    words: Count = 30
    """Most frequent words of a cluster, by which its text prototype is chosen."""
    common_words: Annotated[float, Gt(0), Le(1)] = 0.7
    """Words in at least this share of a class's descriptions do not count."""
    mini_batch_from: Count = 10_000
    """Images of a class from which mini-batch K-means is used."""
    chunk_images: Count = 256
    """Images encoded by the VAE together; one output file each."""


@dataclass(frozen=True, kw_only=True)
class VlcpSynthesis(Synthesis):
    """Drawing an image from each pair of an image and a text prototype."""

    use_image: bool = True
    """Starts from the image prototype; otherwise from noise alone."""
    use_text: bool = True
    """Prompts with the text prototype; otherwise with describe.template."""
    strength: Annotated[float, Gt(0), Le(1)] = 0.7
    """Noise added to the image prototype, as a share of the schedule."""
    negative_prompt: str = "cartoon, anime, painting"
    """What guidance leads away from."""


@dataclass(frozen=True, kw_only=True)
class Classifiers:
    """The classifiers that are trained from scratch on a set to measure it, with hard labels."""

    model: Literal["resnet-ap-10", "resnet-18", "convnet-3", "convnet-4", "convnet-5", "convnet-6"] = (
        "convnet-3"
    )
    """Network of the field's protocol, with instance normalisation."""
    width: Count = 128
    """Channels of a ConvNet; ResNets have 64 to 512."""
    image_px: Count = 32
    """Side of the images that classifiers see."""
    steps: Count = 300
    """Optimiser steps of every classifier, whatever the size of its set."""
    batch_images: Annotated[int, Ge(2)] = 64
    """Images in a step; a smaller set is trained on whole."""
    learning_rates: Annotated[tuple[Positive, ...], MinLen(1)] = (0.01,)
    """Grid from which each set's learning rate is chosen on validation data; not looked for where it is one."""
    momentum: Rate = 0.9
    """Momentum of SGD."""
    weight_decay: Weight = 5e-4
    """Weight decay."""
    flip: bool = True
    """Mirrors images at random."""
    cutmix: Annotated[float, Ge(0), Le(1)] = 0.5
    """Share of the batches that are mixed by CutMix."""
    precision: Precision = "auto"
    """Of matrix products and convolutions in training; "auto" is bfloat16 on GPUs and on CPUs with units for it, and
    float32 on others."""

    @property
    def poolings(self) -> int | None:
        """How often a ConvNet halves the side of an image, None for ResNets; raises ``UserError`` when it cannot."""
        depth = self.model.removeprefix("convnet-")
        if not depth.isdecimal():
            least = 16 if self.model == "resnet-ap-10" else 9
            if self.image_px < least:
                raise UserError(
                    f"classifiers.model={self.model} needs images of {least} px, but classifiers.image_px="
                    f"{self.image_px}; smaller ones end as single pixels, of which instance norm leaves nothing"
                )
            return None
        if not self.image_px >> int(depth):
            raise UserError(
                f"classifiers.model={self.model} halves the side of images {depth} times, but "
                f"classifiers.image_px={self.image_px}; choose a shallower one"
            )
        return int(depth)


@dataclass(frozen=True, kw_only=True)
class Students:
    """The dual encoders that are trained on a set to measure it."""

    section: ClassVar[str] = "students"
    """Of the settings, for messages."""
    image_model: str = "tiny-nf"
    """Image encoder: a zoo name, any timm name, or "local-dir:/FOLDER"."""
    text_model: str = "tiny-bert"
    """Text encoder: a zoo name, a transformers hub name, or a folder."""
    image_px: Count = 32
    """Side of the images that students see."""
    max_tokens: Annotated[int, Ge(3)] = 48
    """Captions are cut to this many tokens."""
    embed_dim: Count = 256
    """Width of the shared space."""
    protocol: Literal["frozen-text", "both-encoders"] = "frozen-text"
    """"frozen-text" trains the image encoder and both heads (LoRS and its followers); "both-encoders" all."""
    steps: Count = 80
    """Optimiser steps of every student, whatever the size of its set."""
    batch_pairs: Annotated[int, Ge(2)] = 64
    """Pairs in a step; a smaller set is trained on whole."""
    learning_rates: Annotated[tuple[Positive, ...], MinLen(1)] = (0.03, 0.1)
    """Grid from which each set's learning rate is chosen on validation data."""
    momentum: Rate = 0.9
    """Momentum of SGD."""
    weight_decay: Weight = 5e-4
    """Weight decay."""
    temperature: Positive = 0.07
    """Temperature of InfoNCE."""
    precision: Precision = "auto"
    """Of matrix products and convolutions in training; "auto" is bfloat16 on GPUs and on CPUs with units for it, and
    float32 on others."""


@dataclass(frozen=True, kw_only=True)
class PairLearning(Training):
    """CovMatch's optimisation of pixels and token embeddings (arXiv 2510.18583), whatever the pairs begin as."""

    section: ClassVar[str]
    """Of the settings, for messages."""
    learn: Literal["both", "pixels", "texts"] = "both"
    """What is learnt; the rest stays as the pairs were in the beginning."""
    iterations: Annotated[int, Ge(0)] = 200
    """Updates of the pairs; 0 keeps them as they begin."""
    real_batch: Annotated[int, Ge(2)] = 128
    """Real pairs of an iteration, over all workers: to match, and to update the encoders on."""
    synthetic_batch: Annotated[int, Ge(2)] = 256
    """Synthetic pairs of an iteration, over all workers; all of them where they are fewer."""
    micro_batch: Count = operational(128)
    """Pairs whose graph a worker holds at once. Lower it where a GPU runs out of memory: the gradient is the same."""
    rho: Positive = 1.0
    """Factor of the real cross-covariance; published: 2 at 100 pairs, 1 at 200 and 500."""
    mean_weight: Weight = 0.1
    """Lambda, weight of the means; 0 leaves them out. Published: 0.1, and 0.5 to 0.6 at 500 pairs."""
    means: Literal["embeddings", "features"] = "embeddings"
    """Whether means are compared after the heads, as published, or before."""
    relative: bool = False
    """Divides the covariance term by the squared norm of the real cross-covariance, so that lambda means the same
    whatever the scale of the features."""
    real_moments: Literal["batches", "whole"] = "batches"
    """Real moments under the initial encoders from the batch, or from one pass over the whole data; then the sampling
    error of the batches is recorded. Encoders that were updated are always matched on batches."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the pairs; published: SGD."""
    pixel_rate: Positive = 1.0
    """Learning rate of the pixels, which are normalised."""
    token_rate: Positive = 1.0
    """Learning rate of the token embeddings."""
    momentum: Rate = 0.5
    """Momentum of SGD."""
    keep_range: bool = True
    """Keeps pixels in the range of an image after every update; otherwise they are cut in the end."""
    image_model: str = "tiny-nf"
    """Image encoder to match under; students may have another. Names as for students.image_model."""
    text_model: str = "tiny-bert"
    """Text encoder to match under, whose token embeddings are learnt. Students with another text encoder are trained
    on the captions that the texts began as."""
    image_px: Count = 32
    """Side of the images."""
    max_tokens: Annotated[int, Ge(3)] = 48
    """Length of the texts; a starting caption must fit."""
    embed_dim: Count = 256
    """Width of the heads; published: 2304."""
    frozen_text: bool = False
    """Leaves the text encoder as it was pretrained, as earlier work does."""
    encoder_updates: bool = True
    """One InfoNCE step of the encoders on the real batch in every iteration."""
    encoder_optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser of those steps; SGD has momentum 0.9."""
    encoder_rate: Positive = 0.01
    """Learning rate of the encoders."""
    head_rate: Positive = 0.1
    """Learning rate of the heads."""
    temperature: Positive = 0.07
    """Temperature of InfoNCE."""
    restart_iterations: Count = 50
    """Iterations after which the encoders are pretrained ones again, with new heads."""
    precision: Precision = "auto"
    """Of matrix products and convolutions; "auto" is bfloat16 on GPUs and float32 on CPUs."""
    cache_mib: Annotated[int, Ge(0)] = 256
    """Real images are held decoded in Ray's object store where they take no more than this, in MiB; otherwise they are
    streamed from storage and decoded again in every epoch."""
    checkpoint_iterations: Count = operational(50)
    """Iterations between checkpoints, from which an interrupted run goes on; small ones at multiples of
    restart_iterations, as the encoders need not be saved there."""

    @property
    def real_pairs_per_worker(self) -> int:
        """A worker's share of a real batch; raises ``UserError`` when it cannot be shared evenly."""
        return _share(f"{self.section}.real_batch", self.real_batch, f"{self.section}.workers", self.workers)


@dataclass(frozen=True, kw_only=True)
class Match(PairLearning):
    """CovMatch's optimisation of pixels and token embeddings (arXiv 2510.18583)."""

    section: ClassVar[str] = "match"
    pairs: Annotated[int, Ge(2)] = 100
    """Image-caption pairs of the distilled set."""
    init: str = "random"
    """What to start from: "random", "herding", "k-center" or "clip-score" real pairs; or the folder or URI of any
    distilled set with match.pairs pairs (an image with c captions is c pairs). Its learnt pairs are taken up where
    their vocabulary is that of match.text_model, otherwise its images and captions."""

    @property
    def start_set(self) -> str | None:
        """Where the distilled set lies that `init` names; None where it names real pairs."""
        return None if self.init in CORESETS else self.init


@dataclass(frozen=True, kw_only=True)
class Refine(PairLearning):
    """CovMatch's optimisation of the pairs that EDGE has drawn and captioned, as a last step."""

    section: ClassVar[str] = "refine"
    iterations: Annotated[int, Ge(0)] = 0
    """Updates of the pairs; 0 leaves EDGE's images and captions as they are."""
    max_tokens: Annotated[int, Ge(3)] = 48
    """Length of the texts; longer captions are cut to it, as for students."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Comparing sets by the students they make."""

    val: str
    """Pairs on which learning rates are chosen: a URI of the same kind as data.uri."""
    test: str
    """Pairs on which students are tested; never looked at before."""
    val_split: str | None = None
    """Split of `val`, for Karpathy JSON."""
    test_split: str | None = None
    """Split of `test`, for Karpathy JSON."""
    val_image_root: str | None = None
    """Folder of the image files of `val`, for COCO and Karpathy JSON. Default: that of `data` if `val` is the same
    file as data.uri, otherwise the folder of the JSON file."""
    test_image_root: str | None = None
    """Folder of the image files of `test`, by the same rule."""
    max_pairs: Count = 1000
    """At most this many images of val and of test are used."""
    seeds: Count = 3
    """Students per set; the report gives mean and standard deviation over them."""
    draws: Count = extending(1)
    """Distillations, each with a seed of its own, beside which random, k-center and other baselines with a seed are
    drawn as often. The report then gives the spread of draws beside that of students: a difference between sets that
    is smaller is noise. A finished run with a larger number keeps what it has and makes the missing draws."""
    baselines: tuple[Literal["random", "herding", "k-center", "clip-score", "full"], ...] = (
        "random",
        "herding",
        "k-center",
        "clip-score",
        "full",
    )
    """Sets to compare with: coresets of as many real pairs, and all the data. "clip-score" draws from the pairs whose
    image and first caption agree best under CLIP, as DataComp filters (arXiv 2304.14108)."""
    clip_score_fraction: Annotated[float, Gt(0), Le(1)] = 0.5
    """Share of the real pairs that clip-score draws from. The better half is free of wrong captions where CLIP knows
    them and fewer than half are wrong; DataComp keeps 0.3 of unfiltered web pairs."""
    full_pairs: Count = 50_000
    """"full" is trained on at most this many real images."""
    gpus_per_student: Weight = operational(0.25)
    """Share of a GPU for each student; ignored on clusters without GPUs."""

    def sources(self, data: Data) -> dict[str, Data]:
        """``val`` and ``test``: like the training data, with URIs, splits and image folders of their own."""
        found = {}
        for part in ("val", "test"):
            uri, image_root = getattr(self, part), getattr(self, f"{part}_image_root")
            if image_root is None and uri == data.uri:
                image_root = data.image_root
            split = getattr(self, f"{part}_split")
            if uri is not None:
                found[part] = replace(data, uri=uri, split=split, image_root=image_root, limit=self.max_pairs)
        return found


LabelledBaseline = Literal["random", "herding", "k-center", "clip-score", "prompts", "full"]


@dataclass(frozen=True, kw_only=True)
class LabelledEvaluation(Evaluation):
    """Comparing labelled sets by the classifiers they make."""

    val: str | None = None  # type: ignore[assignment]
    """Images on which learning rates are chosen, where classifiers.learning_rates has several."""
    baselines: tuple[LabelledBaseline, ...] = (  # type: ignore[assignment]
        "random",
        "herding",
        "k-center",
        "clip-score",
        "prompts",
        "full",
    )
    """Sets to compare with: coresets of as many real images of each class; drawings of the generator as it is, prompted
    with describe.template; and all the data. "clip-score" draws from the images of a class that agree best with their
    first caption where describe.source is "captions", and otherwise with describe.template."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Everything an EDGE run depends on."""

    run: Run = field(default_factory=Run)
    plan: Plan = field(default_factory=Plan)
    data: Data
    features: Features = field(default_factory=Features)
    finetune: EdgeFinetune = field(default_factory=EdgeFinetune)
    synthesis: EdgeSynthesis = field(default_factory=EdgeSynthesis)
    captions: Captions = field(default_factory=Captions)
    refine: Refine = field(default_factory=Refine)
    students: Students = field(default_factory=Students)
    evaluation: Evaluation

    @property
    def matching(self) -> PairLearning:
        """How drawn pairs are refined."""
        return self.refine

    @property
    def images(self) -> int:
        """Images of the distilled set; each stands for ``captions.per_image`` pairs."""
        return self.synthesis.pairs // self.captions.per_image

    @property
    def candidates(self) -> int:
        """Images that are drawn, of which ``images`` are kept."""
        return self.images * self.synthesis.candidates_per_image


@dataclass(frozen=True, kw_only=True)
class Covmatch:
    """Everything a CovMatch run depends on."""

    run: Run = field(default_factory=Run)
    plan: Plan = field(default_factory=Plan)
    data: Data
    features: Features = field(default_factory=Features)
    match: Match = field(default_factory=Match)
    students: Students = field(default_factory=Students)
    evaluation: Evaluation

    @property
    def matching(self) -> PairLearning:
        """How pairs are learnt."""
        return self.match


@dataclass(frozen=True, kw_only=True)
class Vlcp:
    """Everything a VLCP run depends on."""

    run: Run = field(default_factory=Run)
    plan: Plan = field(default_factory=Plan)
    data: Data
    features: Features = field(default_factory=Features)
    describe: Describe = field(default_factory=Describe)
    finetune: Finetune = field(default_factory=Finetune)
    prototypes: Prototypes = field(default_factory=Prototypes)
    synthesis: VlcpSynthesis = field(default_factory=VlcpSynthesis)
    classifiers: Classifiers = field(default_factory=Classifiers)
    evaluation: LabelledEvaluation


@dataclass(frozen=True, kw_only=True)
class Precompute:
    """CLIP features and moments of a dataset, and nothing else."""

    run: Run = field(default_factory=Run)
    plan: Plan = field(default_factory=Plan)
    data: Data
    features: Features = field(default_factory=Features)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Students trained on a distilled set, and on real pairs beside it."""

    set: str
    """The distilled set: a folder or URI with its manifest.json."""
    run: Run = field(default_factory=Run)
    plan: Plan = field(default_factory=Plan)
    data: Data
    features: Features = field(default_factory=Features)
    students: Students = field(default_factory=Students)
    evaluation: Evaluation
