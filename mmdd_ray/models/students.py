"""Students: a pretrained image encoder, a pretrained text encoder, and a linear head on each.

A student is what a set of pairs is measured by: it is trained on the set, then searched with real pairs.
"""

# B images or captions in a batch, L tokens, V and T feature widths (T of word embeddings, too), D width of the shared
# space

import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from mmdd_ray.config import EncoderSettings, StudentForm
from mmdd_ray.errors import UserError
from mmdd_ray.models.zoo import check_side, loading, resolve, variant_of

ENCODE_ROWS = 256  # images or captions that are encoded at once without gradients
LENGTH_GROUPS = 4  # into which a batch of texts is divided on a CPU
AS_IS = StudentForm()
CLIP_MEAN, CLIP_STD = timm.data.OPENAI_CLIP_MEAN, timm.data.OPENAI_CLIP_STD
PROJECTION_DROPOUT = 0.1  # of MTT-VL and LoRS
PUNCTUATION = re.compile(r"[.!\"()*#:;~]")  # that ALBEF and its followers take from captions


class Tokens(NamedTuple):
    """Texts as a text encoder takes them, padded on the right; ids and mask are int64."""

    ids_BL: Tensor
    mask_BL: Tensor
    """1 for tokens, 0 for padding."""
    offsets_BLT: Tensor | None = None
    """Learnt offsets, which are added to the word embeddings."""

    def rows(self, rows_B: Tensor | slice) -> "Tokens":
        """The texts with these row numbers."""
        offsets_BLT = None if self.offsets_BLT is None else self.offsets_BLT[rows_B]
        return Tokens(self.ids_BL[rows_B], self.mask_BL[rows_B], offsets_BLT)


class ImageEncoder(nn.Module):
    """Any timm model without its classifier.

    Raises:
        ValueError: the model cannot be loaded, or takes images of another side only.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, image_px: int, section: str = "students", form: StudentForm = AS_IS
    ) -> None:
        """``section`` is that of the settings that name the model, for messages."""
        super().__init__()
        self.image_px = image_px
        source = resolve(name)
        if Path(source).is_dir():
            source = f"local-dir:{source}"
        with loading("image encoder", name, f"{section}.image_model"):
            backbone: Any = timm.create_model(source, pretrained=True)
        # not num_classes=0 above, with which timm refuses a local folder that does not name its classifier
        backbone.reset_classifier(0)
        pretrained = timm.data.resolve_model_data_config(backbone)
        if backbone.pretrained_cfg.get("fixed_input_size"):
            only_px = pretrained["input_size"][-1]
            check_side(only_px, f"{section}.image_model", name, f"{section}.image_px", image_px)
        # a step of tiny-nf on 64 images takes 74 ms of a core in this layout, 107 in the usual one
        self.backbone: nn.Module = backbone.to(memory_format=torch.channels_last)
        clip = {"mean": CLIP_MEAN, "std": CLIP_STD}
        for statistic in ("mean", "std"):
            values = (clip if form.statistics == "clip" else pretrained)[statistic]
            levels_C11 = 255 * torch.tensor(values)[:, None, None]
            self.register_buffer(statistic, levels_C11, persistent=False)
        self.width: int = _feature_width(
            self,
            lambda: torch.zeros(1, image_px, image_px, 3),
            f"{section}.image_model",
            name,
            "a timm classifier",
        )

    def normalise(self, image_BHWC: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) as in the encoder's pretraining, from RGB levels (B, H, W, 3) in [0, 255]."""
        image_BCHW = image_BHWC.permute(0, 3, 1, 2)  # a view, and as it happens in channels-last order
        return (image_BCHW - self.mean) / self.std

    @property
    def pixel_range(self) -> tuple[Tensor, Tensor]:
        """The least and the greatest normalised pixel that an image can have, each (3, 1, 1)."""
        return -self.mean / self.std, (255 - self.mean) / self.std

    def forward(self, image_BHWC: Tensor) -> Tensor:
        """Features (B, V) of RGB images (B, H, W, 3) with levels in [0, 255], of any dtype."""
        return self.encode(self.normalise(image_BHWC))

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Features (B, V) of normalised pixels (B, 3, H, W)."""
        return self.backbone(pixels_BCHW.to(memory_format=torch.channels_last))


class TextEncoder(nn.Module):
    """Any transformers encoder; a caption's feature is the mean of its tokens' last hidden states, or the first one.

    The mean, where no protocol says otherwise, and not the pooler or the first token: those are trained by
    next-sentence prediction, which only BERT itself was trained with, and are noise in encoders that learnt from masked
    words alone.

    Raises:
        ValueError: the model cannot be loaded.
    """

    def __init__(
        self, name: str, max_tokens: int, section: str = "students", form: StudentForm = AS_IS
    ) -> None:
        """``section`` as for ``ImageEncoder``."""
        super().__init__()
        self.form = form
        source = resolve(name)
        self.tokenizer = _load_tokenizer(name, section)
        with loading("text encoder", name, f"{section}.text_model"):
            # float32, because transformers loads what is stored, and momentum SGD in float16 stands still
            self.backbone = transformers.AutoModel.from_pretrained(
                source,
                dtype=torch.float32,
                use_safetensors=True,
                variant=variant_of("text encoder", name, f"{section}.text_model"),
                trust_remote_code=False,
            )
        if hasattr(self.backbone, "pooler"):
            self.backbone.pooler = None  # drawn at random where the checkpoint has none, and never asked
        self.max_tokens = min(max_tokens, self.tokenizer.model_max_length)
        self.width: int = _feature_width(
            self, lambda: self.tokenize(["a"]), f"{section}.text_model", name, "an encoder such as BERT"
        )

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Tokens of the captions, on this encoder's device; longer captions are cut."""
        if (words := self.form.caption_words) is not None:
            captions = [plain_caption(caption, words) for caption in captions]
        found = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.backbone.device)
        return Tokens(found["input_ids"], found["attention_mask"])

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """Features (P, T) float32 of any number of captions, in their order."""
        by_length = sorted(
            range(len(captions)), key=lambda row: len(captions[row])
        )  # then chunks hold few pads
        feature_PT = torch.empty(len(captions), self.width, device=self.backbone.device)
        for start in range(0, len(captions), ENCODE_ROWS):
            rows = by_length[start : start + ENCODE_ROWS]
            feature_PT[rows] = self(self.tokenize([captions[row] for row in rows])).float()
        return feature_PT

    @property
    def vocabulary(self) -> Tensor:
        """Word embeddings (words, T), by token id."""
        return self.backbone.get_input_embeddings().weight

    def vocabulary_digest(self) -> str:
        """Names the vocabulary: ids and offsets mean something to encoders that began with this one alone."""
        values = self.vocabulary.detach().float().cpu().contiguous().numpy()
        return blake2b(values.data, digest_size=16).hexdigest()

    def weights_digest(self) -> str:
        """Names the encoder: its text vectors mean something to students that leave this one as it is."""
        found = blake2b(b"" if self.form.pooling == "mean" else self.form.pooling.encode(), digest_size=16)
        for name, value in sorted(self.backbone.named_parameters()):
            found.update(name.encode())
            found.update(value.detach().float().cpu().contiguous().numpy().data)
        return found.hexdigest()

    def word_embeddings(self, tokens: Tokens) -> Tensor:
        """The embeddings that enter the encoder, (B, L, T): its own of the words, and the offsets."""
        embeddings_BLT = self.backbone.get_input_embeddings()(tokens.ids_BL)
        return embeddings_BLT if tokens.offsets_BLT is None else embeddings_BLT + tokens.offsets_BLT

    @torch.no_grad()
    def nearest_words(self, tokens: Tokens) -> list[str]:
        """Texts with offsets as people can read them: for each token the word with the highest cosine."""
        words_WT = F.normalize(self.vocabulary.float(), dim=1)
        texts = []
        for values_LT, mask_L in zip(self.word_embeddings(tokens), tokens.mask_BL, strict=True):
            nearest = (F.normalize(values_LT[mask_L.bool()].float(), dim=1) @ words_WT.T).argmax(dim=1)
            texts.append(self.tokenizer.decode(nearest.tolist(), skip_special_tokens=True))
        return texts

    def forward(self, tokens: Tokens) -> Tensor:
        """Features (B, T) of texts."""
        embeddings_BLT = self.word_embeddings(tokens)
        if tokens.mask_BL.device.type != "cpu" or len(tokens.mask_BL) < LENGTH_GROUPS:
            return self._pooled(embeddings_BLT, tokens.mask_BL)
        # On a CPU pads cost what words do, and small batches nothing: with short captions and long ones apart a step
        # of MiniLM on Flickr8k's takes half of the time.
        place_L = torch.arange(1, tokens.mask_BL.shape[1] + 1)
        length_B = (tokens.mask_BL * place_L).amax(dim=1)  # to the last word, wherever there are pads
        order_B = length_B.argsort(stable=True)
        parts = []
        for rows in order_B.chunk(LENGTH_GROUPS):
            longest = int(length_B[rows[-1]])
            parts.append(self._pooled(embeddings_BLT[rows, :longest], tokens.mask_BL[rows, :longest]))
        return torch.cat(parts)[order_B.argsort()]

    def _pooled(self, embeddings_BLT: Tensor, mask_BL: Tensor) -> Tensor:
        """Features (B, T) of embedded words."""
        found = self.backbone(inputs_embeds=embeddings_BLT, attention_mask=mask_BL)
        hidden_BLT = found.last_hidden_state
        if self.form.pooling == "cls":
            return hidden_BLT[:, 0].float()
        # in float32 under autocast, too: features lie in a narrow cone, and bfloat16 would round what sets them apart
        mask_BL1 = mask_BL[:, :, None]
        return (hidden_BLT.float() * mask_BL1).sum(dim=1) / mask_BL1.sum(dim=1)


def _feature_width(
    encoder: nn.Module, sample: Callable[[], Any], setting: str, name: str, wanted: str
) -> int:
    """Columns of the encoder's features of one sample.

    Raises:
        ValueError: it makes no features of it: a decoder, a pair of towers, a network for larger images.
    """
    was_training = encoder.training
    encoder.eval()  # batch statistics of a single image may be undefined
    try:
        with torch.no_grad():
            (width,) = encoder(sample())[0].shape
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{setting}={name!r} gives no feature vectors here ({reason[:200]}); choose {wanted}"
        ) from error
    encoder.train(was_training)
    return width


class TextProjection(nn.Module):
    """The projection of text features in MTT-VL (Wu et al., arXiv 2308.07545) and LoRS: two layers and a residual."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, embed_dim)
        self.refine = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(PROJECTION_DROPOUT)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, feature_BT: Tensor) -> Tensor:
        """Embeddings (B, D) of features (B, T)."""
        projected_BD = self.project(feature_BT)
        return self.norm(projected_BD + self.dropout(self.refine(F.gelu(projected_BD))))


class DualEncoder(nn.Module):
    """Images and captions in one space of unit-norm embeddings: ``z / ‖z‖``, ``z = G (h − m)``, features h.

    m, the mean feature of the pairs it is trained on, is 0 until ``centre`` sets it. Where the form has a projection of
    the texts alone, G of the images is the identity, and D the width of their features.
    """

    image_mean: Tensor
    text_mean: Tensor

    def __init__(
        self, image: ImageEncoder, text: TextEncoder, embed_dim: int, seed: int, form: StudentForm = AS_IS
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.form = form
        self.image_head: Any
        self.text_head: Any
        if form.heads == "linear":
            self.image_head = nn.Linear(image.width, embed_dim, bias=False)
            self.text_head = nn.Linear(text.width, embed_dim, bias=False)
        else:
            self.image_head = nn.Identity()
            self.text_head = TextProjection(text.width, image.width)
        self.draw_heads(seed)
        self.register_buffer("image_mean", torch.zeros(image.width))
        self.register_buffer("text_mean", torch.zeros(text.width))

    def draw_heads(self, seed: int) -> None:
        """Draws both heads anew, from the seed alone."""
        if isinstance(self.text_head, TextProjection):
            with torch.random.fork_rng([]):
                torch.manual_seed(seed)
                for layer in (self.text_head.project, self.text_head.refine):
                    layer.reset_parameters()
            return
        generator = torch.Generator().manual_seed(seed)
        for head in (self.image_head, self.text_head):
            drawn = torch.empty(head.weight.shape).normal_(std=head.in_features**-0.5, generator=generator)
            head.weight.data.copy_(drawn)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.image_mean.device

    @torch.no_grad()
    def centre(self, feature_BV: Tensor, feature_BT: Tensor) -> None:
        """Takes the means of these features for m.

        Pretrained encoders put all captions into a narrow cone: their cosines are 0.99 with tiny-bert. SGD
        then works on the cone's axis, on which captions do not differ. On `shapes` and frozen captions, 60
        steps on 500 images gave a mean recall of 10 % without m and of 52 % with it.
        """
        self.image_mean.copy_(feature_BV.float().mean(dim=0))
        self.text_mean.copy_(feature_BT.float().mean(dim=0))

    def embed_image(self, feature_BV: Tensor) -> Tensor:
        """Unit-norm float32 embeddings (B, D) of image features."""
        return F.normalize(self.image_head(feature_BV - self.image_mean).float(), dim=1)

    def embed_text(self, feature_BT: Tensor) -> Tensor:
        """Unit-norm float32 embeddings (B, D) of caption features."""
        return F.normalize(self.text_head(feature_BT - self.text_mean).float(), dim=1)


def plain_caption(caption: str, words: int) -> str:
    """The caption in small letters, without punctuation, and cut to so many words; as ALBEF and its followers have it
    (Li et al., NeurIPS 2021). One that has nothing else stays as it is."""
    plain = PUNCTUATION.sub(" ", caption.lower()).split()
    return " ".join(plain[:words]) or caption


def count_longer(captions: Sequence[str], settings: EncoderSettings) -> int:
    """Captions that are longer than ``max_tokens``, or than the text encoder reads, so that ``tokenize`` cuts them.

    Raises:
        ValueError: the tokenizer cannot be loaded.
    """
    tokenizer = _load_tokenizer(settings.text_model, settings.section)
    limit = min(settings.max_tokens, tokenizer.model_max_length)
    return sum(len(ids) > limit for ids in tokenizer(list(captions), verbose=False)["input_ids"])


def _load_tokenizer(name: str, section: str) -> Any:
    source = resolve(name)
    with loading("text encoder", name, f"{section}.text_model"):
        # of decoders they pad on the left
        return transformers.AutoTokenizer.from_pretrained(
            source, padding_side="right", trust_remote_code=False
        )


def load_text_encoder(
    settings: EncoderSettings, device: torch.device | str, form: StudentForm = AS_IS
) -> TextEncoder:
    """The pretrained text encoder alone, ready to encode.

    Raises:
        ValueError: it cannot be loaded.
    """
    return TextEncoder(settings.text_model, settings.max_tokens, settings.section, form).to(device).eval()


def load_student(
    settings: EncoderSettings, seed: int, device: torch.device | str, form: StudentForm = AS_IS
) -> DualEncoder:
    """A fresh dual encoder: encoders as they were pretrained, heads drawn from the seed. All float32.

    Raises:
        ValueError: an encoder cannot be loaded, or takes other images than ``settings.image_px``.
    """
    image = ImageEncoder(settings.image_model, settings.image_px, settings.section, form)
    text = TextEncoder(settings.text_model, settings.max_tokens, settings.section, form)
    return DualEncoder(image, text, form.embed_dim or settings.embed_dim, seed, form).to(device)
