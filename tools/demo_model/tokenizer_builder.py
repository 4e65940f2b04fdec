"""Trains the demo's byte-level BPE in Qwen3's layout and writes tokenizer.json and its config.

Layout, as in Qwen3: ids 0..255 are the bytes in GPT-2 alphabet order, merge r makes id 256 + r, and
the 26 control tokens follow. Normalizer, split pattern and decoder are Qwen3's too; digits are single
tokens.
"""

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import mixture
from conversation import EARLY_STOP_TEXT, TEMPLATE_PATH, Template, reply_text
from tool_skills import canonical_tools

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+")
# (content, special) in Qwen3's order
CONTROL_TOKENS = [(f"<|{name}|>", True) for name in (
    "endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end",
    "quad_start", "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")]
CONTROL_TOKENS += [(content, False) for content in (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>")]


def corpus(num_samples: int, seed: int) -> list[str]:
    """Texts as the model will see them. Control tokens are left out: they are never merged."""
    template, rng = Template(), random.Random(seed)
    texts = []
    for _ in range(num_samples):
        sample = mixture.sample(rng)
        texts.append(template.prompt(sample) + reply_text(sample))
    tool_sample = mixture.Sample([{"role": "user", "content": ""}], "", "", tools=canonical_tools())
    texts += [EARLY_STOP_TEXT, template.prompt(tool_sample)] * (num_samples // 20)
    controls = [content for content, _ in CONTROL_TOKENS]
    for control in controls:
        texts = [text.replace(control, "\0") for text in texts]
    return [piece for text in texts for piece in text.split("\0") if piece]


def _pipeline(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    return tokenizer


def build(num_merges: int, num_samples: int = 12000, seed: int = 11) -> Tokenizer:
    tokenizer = _pipeline(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=256 + num_merges, show_progress=False, special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus(num_samples, seed), trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    # Rebuild, so that the id of a token follows from its merge and nothing else.
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for left, right in (tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in trained["merges"]):
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append((left, right))
    assert len(vocab) == 256 + len(merges)
    rebuilt = _pipeline(models.BPE(vocab=vocab, merges=merges))
    rebuilt.add_tokens([AddedToken(content, special=special, normalized=False)
                        for content, special in CONTROL_TOKENS])
    return rebuilt


def save(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    data = json.loads(tokenizer.to_str())
    # As in Qwen3's file. Neither has an effect on ids, and the library does not keep the decoder's flags.
    data["post_processor"] = data["decoder"] = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = data["model"]
    model.update(continuing_subword_prefix="", end_of_word_suffix="")
    by_id = sorted(model["vocab"].items(), key=lambda item: item[1])
    for r, (left, right) in enumerate(model["merges"]):
        assert model["vocab"][left + right] == 256 + r
    model["vocab"] = dict(by_id)
    (folder / "tokenizer.json").write_text(
        json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    first_control = tokenizer.token_to_id("<|endoftext|>")
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(first_control + i): {"content": content, "lstrip": False, "normalized": False,
                                     "rstrip": False, "single_word": False, "special": special}
            for i, (content, special) in enumerate(CONTROL_TOKENS)},
        "bos_token": None,
        "chat_template": TEMPLATE_PATH.read_text(encoding="utf-8"),
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": max_length,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    config["additional_special_tokens"] = [content for content, special in CONTROL_TOKENS[1:] if special]
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
