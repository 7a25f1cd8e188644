"""A tiny Qwen3-VL of random weights, for tests: images of any side, a token for each 8 x 8 pixels."""

from pathlib import Path

import torch
from tiny_llava import TEMPLATE, WORDS

SPECIAL = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def write_qwen(folder: Path) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = [*WORDS, *SPECIAL.values()]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL.values())})
    cut = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(**cut, size={"shortest_edge": 64, "longest_edge": 1024}),
        tokenizer,
        transformers.Qwen3VLVideoProcessor(**cut),
        chat_template=TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>"),
    ).save_pretrained(folder)
    both = {"hidden_size": 32, "intermediate_size": 64}
    text = {
        **both,
        "vocab_size": len(known),
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
    }
    vision = {
        **both,
        "depth": 2,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    ids = {name: known.index(word) for name, word in SPECIAL.items()}
    torch.manual_seed(0)
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    transformers.Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
