"""Batches of similar length, made by a background process."""

import multiprocessing
import random

import numpy as np

import mixture
from conversation import Encoder, Sample, Template

LENGTH_STEP = 8  # few different shapes: see model.py
MAX_TOKENS = 480  # longer samples are dropped; 99.9 % are shorter


def pad_batch(encoded: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """-> ids [B, L], targets [B, L]; targets[i] is the id to predict at i, -100 for no loss."""
    length = max(len(ids) for ids, _ in encoded) - 1
    length = -(-length // LENGTH_STEP) * LENGTH_STEP
    all_ids = np.zeros((len(encoded), length), np.int64)
    targets = np.full((len(encoded), length), -100, np.int64)
    for row, (ids, mask) in enumerate(encoded):
        all_ids[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = np.where(mask[1:], ids[1:], -100)
    return all_ids, targets


def bucketed(encoded: list, tokens_per_batch: int, rng: random.Random) -> tuple[list, list]:
    """-> (batches, leftover). One batch shape per length; what fills no batch waits for the next round."""
    by_length: dict[int, list] = {}
    for item in encoded:
        by_length.setdefault(-(-(len(item[0]) - 1) // LENGTH_STEP) * LENGTH_STEP, []).append(item)
    batches, leftover = [], []
    for length, items in by_length.items():
        rows = max(1, tokens_per_batch // length)
        while len(items) >= rows:
            batches.append(pad_batch(items[:rows]))
            items = items[rows:]
        leftover += items
    rng.shuffle(batches)
    return batches, leftover


def _produce(tokenizer, queue, max_operands, tokens_per_batch, seed) -> None:
    encoder = Encoder(tokenizer, Template())
    round_number, leftover = 0, []
    while True:
        rng = random.Random(seed * 1_000_003 + round_number)
        round_number += 1
        encoded = leftover
        for _ in range(3000):
            ids, mask = encoder.encode(mixture.sample(rng, max_operands.value), rng)
            if len(ids) <= MAX_TOKENS:
                encoded.append((ids, mask))
        made, leftover = bucketed(encoded, tokens_per_batch, rng)
        for batch in made:
            queue.put(batch)


class BatchSource:
    """`next()` gives (ids, targets); `max_operands.value` is the curriculum."""

    def __init__(self, tokenizer, tokens_per_batch: int, seed: int):
        context = multiprocessing.get_context("spawn")
        self.max_operands = context.Value("i", 4)
        self._queue = context.Queue(maxsize=24)
        self._process = context.Process(
            target=_produce, daemon=True,
            args=(tokenizer, self._queue, self.max_operands, tokens_per_batch, seed))
        self._process.start()

    def next(self):
        return self._queue.get()

    def close(self) -> None:
        self._process.terminate()


def encode_all(tokenizer, samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
    encoder, rng = Encoder(tokenizer, Template()), random.Random(0)
    return pad_batch([encoder.encode(sample, rng) for sample in samples])
