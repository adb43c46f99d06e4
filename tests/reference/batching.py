"""Training batches made slowly: every list is written out, and every picture is read and moved alone."""

from __future__ import annotations

import numpy as np

from imagegpt.data.records import read_record


def order(count, seed, epoch, block, window):
    """Numbers of an epoch: blocks permuted, then the records within each window."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    if count <= window:
        return rng.permutation(count).tolist()
    blocks = [list(range(first, min(first + block, count))) for first in range(0, count, block)]
    numbers = [number for place in rng.permutation(len(blocks)).tolist() for number in blocks[place]]
    windows = [np.array(numbers[first : first + window]) for first in range(0, count, window)]
    for numbers_of_one in windows:
        rng.shuffle(numbers_of_one)
    return [number for numbers_of_one in windows for number in numbers_of_one.tolist()]


def view_rng(seed, epoch, number):
    words = (np.array(words, np.uint64) for words in ([seed, epoch], [0, 0, number, 1]))
    key, counter = words
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def row(record, number, codec, framing, augmentation, seed, epoch):
    """A record's ids, or None where it can't be read."""
    rng = view_rng(seed, epoch, number)
    if record.ids is not None:
        return augmentation.move(record.ids.reshape(framing.height, framing.width), rng).reshape(-1)
    image = read_record(record, "skip")
    return None if isinstance(image, str) else codec.encode(augmentation.apply(image, framing, rng)).reshape(-1)


def batch(source, codec, framing, augmentation, size, seed, position, block, window):
    """A global batch: ids, labels and numbers; a row that can't be read is the next one that can, going round."""
    records = list(source)
    epoch, within = divmod(position, len(records) // size)
    window = len(records) if source.tokens else window
    numbers = order(len(records), seed, epoch, block, window)[within * size : (within + 1) * size]
    rows = [row(records[number], number, codec, framing, augmentation, seed, epoch) for number in numbers]
    places = []
    for place in range(size):
        while rows[place] is None:
            place = (place + 1) % size
        places.append(place)
    taken = [numbers[place] for place in places]
    labels = [records[number].label for number in taken] if source.labelled else None
    return np.array([rows[place] for place in places], np.int64), labels, taken
