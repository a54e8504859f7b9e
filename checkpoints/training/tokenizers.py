"""Builds the three tokenizers from the training text, each of the kind that its real model has.

Qwen gets byte-level BPE with Qwen2.5-VL's special tokens, CLIP its lower-casing BPE with </w>, T5 a
unigram model. Each covers any UTF-8: the BPEs through all 256 bytes, T5 through <unk>.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AddedToken, CLIPTokenizer, Qwen2Tokenizer, T5Tokenizer

from checkpoints.training import wording
from checkpoints.training.chat import CHAT_TEMPLATE, SYSTEM
from checkpoints.training.scenes import sample

QWEN_BYTES_AND_MERGES = 800
CLIP_MERGES = 330
T5_WORDS = 400
T5_PARTS = 120
QWEN_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
QWEN_ADDED = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
GENERAL = (
    "The quick brown fox jumps over the lazy dog. A photograph of a cat sitting on a wooden table "
    "in the morning light. An old house by the sea, with mountains and trees behind it. Nothing "
    "here is blurry, low quality or ugly. High resolution digital painting, watercolour, sketch. "
    "People walk through the city at night; cars and bicycles pass by under the street lamps. "
    "I would like to know which of these is true, and how long it takes from start to end. "
    "Numbers: 0 1 2 3 4 5 6 7 8 9 10 12 16 20 24 32 50 64 100 128 256 512 1000 1024."
)


def corpus(count: int, seed: int = 0) -> Iterator[str]:
    """Prompts, questions, answers and some general sentences; a fixed stream for a seed."""
    rng = random.Random(f"corpus-{seed}")
    for index in range(count):
        scene = sample(rng)
        yield wording.prompt(rng, scene)
        yield " ".join(wording.question(rng, scene))
        if index % 4 == 0:
            yield " ".join(wording.chat(rng))
        if index % 20 == 0:
            yield GENERAL
            yield SYSTEM


def _clean_bpe(tokenizer: Tokenizer, alphabet: list[str]) -> tuple[dict[str, int], list[tuple]]:
    """Renumber a trained BPE: the alphabet first, then one token per merge, nothing missing."""
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    kept = []
    for left, right in merges:
        if left in vocab and right in vocab:
            vocab.setdefault(left + right, len(vocab))
            kept.append((left, right))
    return vocab, kept


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE with the special tokens and the chat template of Qwen2.5-VL."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = Qwen2Tokenizer(vocab={}, merges=[]).backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=QWEN_BYTES_AND_MERGES, initial_alphabet=alphabet, show_progress=False
    )
    base.train_from_iterator(corpus(6000), trainer)
    vocab, merges = _clean_bpe(base, alphabet)
    for token in QWEN_SPECIAL + QWEN_ADDED:
        vocab[token] = len(vocab)
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        model_max_length=131072,
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in QWEN_SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in QWEN_ADDED])
    return tokenizer


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's BPE: lower case, words closed by </w>, 77 tokens, <|endoftext|> the last id."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = letters + [letter + "</w>" for letter in letters]
    like = CLIPTokenizer().backend_tokenizer
    base = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    base.normalizer, base.pre_tokenizer = like.normalizer, like.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + CLIP_MERGES,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    base.train_from_iterator(corpus(6000), trainer)
    vocab, merges = _clean_bpe(base, alphabet)
    merges = merges[:CLIP_MERGES]
    kept = set(alphabet) | {left + right for left, right in merges}
    vocab = {token: index for token, index in vocab.items() if token in kept}
    vocab["<|startoftext|>"] = len(vocab)
    vocab["<|endoftext|>"] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """T5's unigram model: <pad>, </s>, <unk> are 0, 1, 2; rare characters become <unk>.

    Pieces and their log probabilities are counted, not fitted: whole words first, then common parts
    of words, then single characters. That is deterministic, and every word of the world is one
    piece, as a large vocabulary would have it.
    """
    words: Counter[str] = Counter()
    for text in corpus(6000):
        words.update(word.strip(".,!?;:'()") for word in text.split())
    words.pop("", None)
    total = sum(words.values())
    pieces = {"▁" + word: math.log(count / total) for word, count in words.most_common(T5_WORDS)}
    parts: Counter[str] = Counter()
    for word, count in words.items():
        for length in (2, 3):
            for start in range(len(word) - length + 1):
                parts[word[start : start + length]] += min(count, 50)
    # Parts and characters cost more than any word, so that a known word is never split.
    for part, _ in parts.most_common(T5_PARTS):
        pieces.setdefault(part, -16.0)
    codes = [*range(33, 127), *range(161, 256)]
    for character in ["▁", *(chr(code) for code in codes)]:
        pieces.setdefault(character, -12.0)
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces.items()]
    # every training prompt fits into 64 tokens; the server takes its default length from here
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=64)


def write_vocabulary(tokenizer: Qwen2Tokenizer | CLIPTokenizer, folder: Path) -> None:
    """Write vocab.json and merges.txt beside tokenizer.json, as the real repositories have them."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    added = set(QWEN_SPECIAL + QWEN_ADDED) if isinstance(tokenizer, Qwen2Tokenizer) else set()
    vocab = {token: index for token, index in model["vocab"].items() if token not in added}
    text = json.dumps(vocab, ensure_ascii=False)
    (folder / "vocab.json").write_text(text + "\n", encoding="utf-8")
    lines = ["#version: 0.2"] + [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
