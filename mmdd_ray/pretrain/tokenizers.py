"""Small English tokenizers, cut from the head of CLIP's byte-pair vocabulary, which open_clip ships.

Byte-pair merges are sorted by frequency, so the first ones are the most useful; the merges that build the words
of the captions, those of `shapes` unless others are named, are kept as well. Any text can be written with what is left,
only in more tokens.
"""

from collections.abc import Collection, Iterable
from functools import cache
from itertools import pairwise

from open_clip.tokenizer import SimpleTokenizer
from transformers import BertTokenizer, CLIPTokenizer

from mmdd_ray.data.web_scenes import VAGUE_TEMPLATES, World, scene

FREQUENT_MERGES = 1400
CONTEXT = 48  # tokens; the longest caption of `shapes` has 36 words and two special tokens


@cache
def shapes_words() -> tuple[str, ...]:
    """Every word that captions of `shapes` are made of, sorted."""
    scenes = (scene(index, seed=0, world=World(broad=True)) for index in range(2000))
    captions = [caption for drawn in scenes for caption in drawn.true_captions()]
    captions += [t.format(colour="", shape="", background="") for t in VAGUE_TEMPLATES]
    return tuple(
        sorted(
            {stripped for caption in captions for word in caption.split() if (stripped := word.strip(",:"))}
        )
    )


def clip_tokenizer(words: Collection[str] | None = None) -> CLIPTokenizer:
    """CLIP's tokenizer with about 1,500 merges instead of 48,894, or those more that lower-case `words` need."""
    full = SimpleTokenizer()
    needed = {merge for word in words or shapes_words() for merge in _merges_of(word, full)}
    kept = [m for rank, m in enumerate(full.bpe_ranks) if rank < FREQUENT_MERGES or m in needed]
    letters = list(full.byte_encoder.values())
    tokens = letters + [c + "</w>" for c in letters] + ["".join(m) for m in kept]
    vocab = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=kept, model_max_length=CONTEXT)


def _merges_of(word: str, full: SimpleTokenizer) -> Iterable[tuple[str, str]]:
    """The merges that byte-pair encoding applies to `word`, in order."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        pairs = list(pairwise(pieces))
        rank, at = min((full.bpe_ranks.get(pair, 1 << 30), i) for i, pair in enumerate(pairs))
        if rank == 1 << 30:
            return
        yield pairs[at]
        pieces[at : at + 2] = ["".join(pairs[at])]


def bert_tokenizer(words: Collection[str] | None = None) -> BertTokenizer:
    """A WordPiece tokenizer over the same words; `bos` and `eos` serve a captioner's decoder (BLIP's [DEC])."""
    tokens = [t for t in clip_tokenizer(words).get_vocab() if t.removesuffix("</w>").isascii()]
    whole = sorted(
        {t.removesuffix("</w>") for t in tokens if t.endswith("</w>")} | set(words or shapes_words())
    )
    pieces = sorted({"##" + t.removesuffix("</w>") for t in tokens if t.removesuffix("</w>").isalnum()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    vocab = {token: i for i, token in enumerate(special + whole + pieces)}
    return BertTokenizer(vocab=vocab, model_max_length=CONTEXT, bos_token="[DEC]", eos_token="[SEP]")
