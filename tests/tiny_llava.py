"""A tiny vision-language model with a chat template, for tests."""

from pathlib import Path

import torch

WORDS = (
    "<pad>",
    "<s>",
    "</s>",
    "<image>",
    "<unk>",
    "user",
    "assistant",
    "what",
    "is",
    "this",
    "describe",
    "it",
)
TEMPLATE = (
    "{% for message in messages %}user {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)


def write_llava(folder: Path) -> None:
    """A LLaVA of random weights: two layers each, 32 wide, four image tokens, a vocabulary of twelve words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(
                **size, image_size=16, patch_size=8, projection_dim=32
            ),
            text_config=transformers.LlamaConfig(
                **size, vocab_size=len(WORDS), pad_token_id=0, bos_token_id=1, eos_token_id=2
            ),
            image_token_index=WORDS.index("<image>"),
            image_token_id=WORDS.index("<image>"),
            image_seq_length=4,
        )
    ).save_pretrained(folder)
