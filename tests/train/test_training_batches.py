"""Training batches: equal to a slow reference, whatever holds the data, however many processes share it."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
import weakref
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegpt.codec.augment import Augmentation
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.data.ids import read_ids
from imagegpt.data.records import Record, Source, Tokens
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from imagegpt.train.batches import BLOCK, WINDOW, Batches
from imagegpt.train.order import Order, epoch_order, view_rng, view_rngs
from imagegpt.train.pictures import GAP, PictureRows
from imagegpt.train.rows import AHEAD
from imagegpt.train.views import IdViews
from making import KINDS, content, put
from reference import batching

CODEC = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
FRAMING = Framing(8, 16)  # padded by 1 and by 2
COUNT, BATCH = 53, 8
SMALL = {"block": 4, "window": 12}
AUGMENTATIONS = ["none", "flip", "pad", "cifar"]
NONE = Augmentation()


def pictures(count=COUNT, broken=(), labelled=True) -> Source:
    """Different pictures of different sizes; those of `broken` can't be read."""

    def records(start, stop):
        for number in range(start, stop):
            size = (9 + number % 3, 17 + number % 4, 3)
            picture = np.random.default_rng(number).integers(0, 256, size, np.uint8)
            yield Record(
                f"picture {number}",
                b"text" if number in broken else picture,
                10 * number if labelled else None,
            )

    return Source("here", count, records, labelled)


def stored(source: Source) -> Source:
    """The same as ids."""
    ids_NT = np.concatenate([made.ids_BT for made in read_ids(source, CODEC, FRAMING)]).astype(np.uint16)

    def records(start, stop):
        for number, record in enumerate(source.part(start, stop), start):
            yield Record(f"row {number}", label=record.label, ids=ids_NT[number])

    tokens = Tokens(CODEC.fingerprint, (FRAMING.height, FRAMING.width))
    return replace(source, records=records, tokens=tokens, ids_NT=ids_NT)


PICTURES, STORED = pictures(), stored(pictures())
SOURCES = {"pictures": PICTURES, "ids": STORED}


def make(source=PICTURES, augment="none", batch=BATCH, seed=0, rank=0, processes=1, skipped=None, **sizes) -> Batches:
    augmentation = Augmentation.parse(augment)
    return Batches(source, CODEC, FRAMING, augmentation, batch, seed, rank, processes, skipped, **(sizes or SMALL))


def expected(position, source=PICTURES, augment="none", batch=BATCH, seed=0):
    augmentation = Augmentation.parse(augment)
    return batching.batch(source, CODEC, FRAMING, augmentation, batch, seed, position, **SMALL)


def take(batches: Batches, position: int, count: int) -> list:
    with closing(batches.stream(position)) as stream:
        return list(itertools.islice(stream, count))


def assert_same(made, ids_BT, labels, numbers):
    np.testing.assert_array_equal(made.ids_BT, ids_BT)
    assert made.ids_BT.dtype == made.numbers.dtype == np.int64
    assert made.labels == labels
    assert made.numbers.tolist() == numbers


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert threads_now() == 0


@given(st.integers(1, 200), st.integers(0, 2**64 - 1), st.integers(0, 99), st.integers(1, 30), st.integers(1, 90))
def test_an_order_is_the_references_and_a_permutation(count, seed, epoch, block, window):
    made = epoch_order(count, seed, epoch, block, window)
    assert made.tolist() == batching.order(count, seed, epoch, block, window)
    assert sorted(made.tolist()) == list(range(count))


def test_a_window_holds_whole_blocks_and_is_permuted_whole():
    windows = epoch_order(960, 3, 1, 10, 120).reshape(8, 120)
    for window in windows:
        blocks = np.unique(window // 10)
        assert len(blocks) == 12
        assert (np.diff(blocks) > 1).any()
        assert len(set((window[:10] // 10).tolist())) > 3


def test_the_usual_window_is_whole_blocks_and_ids_need_none():
    assert WINDOW % BLOCK == 0
    order = epoch_order(5 * WINDOW, 0, 0, BLOCK, WINDOW)
    assert len(np.unique(order[:WINDOW] // BLOCK)) == WINDOW // BLOCK
    many = np.zeros((3 * WINDOW, 128), np.uint16)
    source = Source("here", len(many), lambda *_: iter(()), tokens=STORED.tokens, ids_NT=many)
    numbers = np.concatenate([make(source, batch=WINDOW // 2, block=BLOCK, window=WINDOW).at(0).numbers])
    assert len(np.unique(numbers // BLOCK)) > 2 * WINDOW // BLOCK  # from nearly everywhere


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(list(SOURCES)), st.integers(1, COUNT), st.integers(0, 2**64 - 1), st.sampled_from(AUGMENTATIONS))
def test_an_epoch_shows_no_record_twice_and_leaves_out_the_remainder(kind, batch, seed, augment):
    batches = make(SOURCES[kind], augment, batch, seed)
    assert batches.per_epoch == COUNT // batch
    for epoch in (0, 1):
        made = [batches.at(epoch * batches.per_epoch + within) for within in range(batches.per_epoch)]
        numbers = np.concatenate([one.numbers for one in made]).tolist()
        assert len(set(numbers)) == len(numbers) == COUNT // batch * batch
        assert set(numbers) <= set(range(COUNT))
        assert [one.position for one in made] == [epoch * batches.per_epoch + n for n in range(batches.per_epoch)]


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_epoch_and_every_seed_has_its_own_order_and_remainder(source):
    def numbers(seed, epoch):
        batches = make(source, seed=seed)
        return [batches.at(epoch * 6 + within).numbers.tolist() for within in range(6)]

    orders = [numbers(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(one != other for one, other in itertools.combinations(orders, 2))
    assert len({frozenset(itertools.chain(*order)) for order in orders}) == 4
    assert numbers(1, 1) == orders[3]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(list(SOURCES)), st.integers(0, 14), st.integers(0, 2**64 - 1), st.sampled_from(AUGMENTATIONS))
def test_a_batch_is_the_references(kind, position, seed, augment):
    reference = expected(position, SOURCES[kind], augment, seed=seed)
    assert_same(make(SOURCES[kind], augment, seed=seed).at(position), *reference)


@pytest.mark.parametrize("augment", ["imagenet", "crop,pad,flip"])
def test_a_cropped_batch_is_the_references(augment):
    for position in (0, 7):
        assert_same(make(augment=augment).at(position), *expected(position, augment=augment))


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_shares_are_the_parts_of_the_whole_batch(source, processes):
    whole = make(source, "cifar")
    ranks = [take(make(source, "cifar", rank=rank, processes=processes), 3, 9) for rank in range(processes)]
    for position, shares in enumerate(zip(*ranks, strict=True), 3):
        made = whole.at(position)
        assert {len(share) for share in shares} == {BATCH // processes}
        np.testing.assert_array_equal(np.concatenate([share.ids_BT for share in shares]), made.ids_BT)
        np.testing.assert_array_equal(np.concatenate([share.numbers for share in shares]), made.numbers)
        assert [label for share in shares for label in share.labels] == made.labels


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(list(SOURCES)),
    st.integers(0, 40),
    st.integers(1, COUNT),
    st.integers(1, 9),
    st.integers(1, 60),
    st.sampled_from(["none", "cifar"]),
)
def test_a_stream_is_the_batches_from_its_position_on(kind, position, batch, block, window, augment):
    batches = make(SOURCES[kind], augment, batch, block=block, window=window)
    for there, made in enumerate(take(batches, position, 9), position):
        again = batches.at(there)
        assert made.position == again.position == there
        assert_same(made, again.ids_BT, again.labels, again.numbers.tolist())


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_ids_and_their_pictures_give_the_same_batches(augment):
    of_pictures = take(make(PICTURES, augment, window=COUNT, block=5), 4, 6)
    for made, other in zip(take(make(STORED, augment), 4, 6), of_pictures, strict=True):
        assert_same(made, other.ids_BT, other.labels, other.numbers.tolist())


@pytest.mark.parametrize("grid", [(8, 16), (7, 9), (16, 8), (32, 32), (1, 1)])
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_views_of_rows_are_the_augmentations_own(augment, grid):
    augmentation, numbers = Augmentation.parse(augment), np.arange(40)
    ids_BT = np.random.default_rng(0).integers(0, 512, (40, grid[0] * grid[1])).astype(np.uint16)
    made = IdViews(augmentation, grid).apply(ids_BT, numbers, view_rngs(5, 2))
    moved = [augmentation.move(ids_T.reshape(grid), view_rng(5, 2, n)) for n, ids_T in enumerate(ids_BT)]
    np.testing.assert_array_equal(made, np.stack(moved).reshape(40, -1))
    assert made.dtype == np.uint16


def test_a_rows_numbers_depend_on_seed_epoch_and_record():
    drawn = {tuple(view_rng(*key).random(2)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert len(drawn) == 4
    rng_of = view_rngs(3, 4)
    for number in (9, 2, 9):  # whatever was drawn before, half a word included
        rng = rng_of(number)
        assert [rng.integers(8), rng.random()] == [(own := view_rng(3, 4, number)).integers(8), own.random()]
        rng.integers(8)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tokens"])
def test_every_kind_of_data_gives_the_references_batches(kind, tmp_path):
    labels = [number % 2 for number in range(21)]
    source = open_source(KINDS[kind](tmp_path / "here", range(21), labels))
    for position, made in enumerate(take(make(source, "cifar", batch=4), 2, 7), 2):
        assert_same(made, *expected(position, source, "cifar", batch=4))
        assert_same(make(source, "cifar", batch=4).at(position), *expected(position, source, "cifar", batch=4))


def test_tokens_give_the_references_batches(tmp_path):
    source = open_source(KINDS["tokens"](tmp_path / "here", range(16), [number % 2 for number in range(16)]))
    codec = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (16, 3)))
    source = replace(source, tokens=Tokens(codec.fingerprint, (2, 3)), length=15)
    flip = Augmentation.parse("flip")
    batches = Batches(source, codec, Framing(2, 3), flip, 4, 7)
    for position, made in enumerate(take(batches, 1, 5), 1):
        assert_same(made, *batching.batch(source, codec, Framing(2, 3), flip, 4, 7, position, 1, 1))
        assert made.numbers.max() < 15


def test_labels_are_none_where_the_source_has_none():
    assert make(pictures(labelled=False)).at(0).labels is None
    assert make(stored(pictures(labelled=False))).at(0).labels is None
    assert make().at(0).labels == [10 * number for number in make().at(0).numbers.tolist()]


BROKEN = (0, 7, 8, 20, 21, 22, 23, 24, 25, 40, 52)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_a_picture_that_cannot_be_read_is_replaced_by_the_next_one_whatever_the_number_of_processes(processes):
    source, told = pictures(broken=BROKEN), [[] for _ in range(processes)]
    ranks = [make(source, "cifar", rank=r, processes=processes, skipped=told[r].append) for r in range(processes)]
    streams = [take(batches, 0, 18) for batches in ranks]
    for position, shares in enumerate(zip(*streams, strict=True)):
        ids_BT, labels, numbers = expected(position, source, "cifar")
        np.testing.assert_array_equal(np.concatenate([share.ids_BT for share in shares]), ids_BT)
        assert [number for share in shares for number in share.numbers.tolist()] == numbers
        assert [label for share in shares for label in share.labels] == labels
        assert not set(numbers) & set(BROKEN)
    seen = set(np.concatenate([batching.order(COUNT, 0, epoch, **SMALL)[:48] for epoch in range(3)]).tolist())
    named = [number for number in BROKEN if number in seen]
    assert len(named) > 8
    for sentences in told:  # each process names a record once, in three epochs
        assert len(set(sentences)) == len(sentences)
    assert {sentence.split(":")[0] for sentence in itertools.chain(*told)} == {f"picture {n}" for n in named}


def test_batches_of_no_picture_that_can_be_read_are_refused():
    batches = make(pictures(broken=range(COUNT)))
    for run in (lambda: batches.at(0), lambda: take(batches, 0, 1)):
        with pytest.raises(InputError, match=r"here: no picture of a batch of 8 can be read; the first: picture \d+:"):
            run()


def test_a_broken_file_in_a_folder_is_told_and_replaced(tmp_path):
    for number in range(12):
        put(tmp_path / f"{number:02}.png", b"text" if number == 5 else content(number))
    told = []
    batches = make(open_source(tmp_path), batch=6, skipped=told.append)
    numbers = [number for made in take(batches, 0, 4) for number in made.numbers.tolist()]
    assert 5 not in numbers
    assert len(numbers) == 24
    assert [str(tmp_path / "05.png") in sentence for sentence in told] == [True]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"batch": COUNT + 1}, "A batch of 54 is larger than the data set, which has 53 pictures"),
        ({"batch": 10, "processes": 4}, "A batch of 10 can't be shared by 4 processes; take 8 or 12"),
        ({"batch": 3, "processes": 4}, "A batch of 3 can't be shared by 4 processes; take 4[.]"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"processes": 0}, "processes must be at least 1"),
        ({"rank": 2, "processes": 2}, "rank must be 0 to 1, not 2"),
        ({"seed": -1}, "seed must be 0"),
        ({"seed": 2**64}, "seed must be 0"),
        ({"block": 0, "window": 3}, "block must be at least 1"),
        ({"block": 3, "window": 0}, "window must be at least 1"),
    ],
)
@pytest.mark.parametrize("kind", SOURCES)
def test_what_cannot_be_shared_is_refused(kind, wrong, words):
    if kind == "ids" and "window" in wrong:
        pytest.skip("ids have none")
    with pytest.raises(InputError, match=words):
        make(SOURCES[kind], **wrong)


def test_a_position_below_0_is_refused_at_once():
    for run in (make().at, make().stream, make().epoch):
        with pytest.raises(InputError, match="at least 0, not -1"):
            run(-1)
    assert make().epoch(13) == (2, 1)


def test_ids_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="here holds ids of a palette of 16, and the augmentation crop needs pictures"):
        make(STORED, "crop")
    with pytest.raises(InputError, match="holds ids of the codec 0123"):
        make(replace(STORED, tokens=Tokens("0123", (8, 16))))
    with pytest.raises(InputError, match="16 x 8"):
        make(replace(STORED, tokens=Tokens(CODEC.fingerprint, (16, 8))))


def test_an_id_that_is_no_colour_is_refused_with_its_row():
    ids_NT = np.array(STORED.ids_NT)
    ids_NT[17, 3] = 16
    batches = make(replace(STORED, ids_NT=ids_NT), "cifar")
    with pytest.raises(InputError, match="row 17: id 16 is no colour of the palette of 16"):
        take(batches, 0, 12)


def test_a_framing_that_crops_at_random_is_refused():
    with pytest.raises(InputError, match="crops at random"):
        Batches(PICTURES, CODEC, Framing(8, 16, "random"), NONE, BATCH, 0)


def threads_now() -> int:
    return sum(thread.name.startswith(("batches", "windows", "pictures")) for thread in threading.enumerate())


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_closing_ends_the_threads(source):
    stream = make(source).stream(0)
    assert threads_now() == 0
    next(stream)
    assert threads_now() > 0
    stream.close()
    assert threads_now() == 0
    make(source).stream(0).close()
    stream = make(source).stream(0)
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt())
    assert threads_now() == 0


def changed(source: Source, change) -> Source:
    """The source, with each record handed to `change` with its number, which may raise or wait."""

    def records(start, stop):
        for number, record in enumerate(source.records(start, stop), start):
            yield change(number, record)

    return replace(source, records=records)


@pytest.mark.parametrize("error", [InputError("damaged"), MemoryError("none left")])
def test_an_error_in_a_thread_is_raised_where_the_batches_are_used(error):
    late = epoch_order(600, 0, 0, 100, 100)[150]

    def change(number, record):
        if number == late:
            raise error
        return record

    seen = []
    with closing(make(changed(pictures(600), change), block=100, window=100).stream(0)) as stream:
        with pytest.raises(type(error), match=str(error)):
            seen.extend(made.position for made in itertools.islice(stream, 30))
        assert seen == list(range(100 // BATCH))  # those of the window before
    assert threads_now() == 0


def test_an_error_while_stored_rows_are_read_is_raised():
    def change(number, record):
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        take(make(changed(STORED, change)), 0, 3)


def test_closing_does_not_wait_for_a_window():
    slow, reading = set(epoch_order(300, 0, 0, 100, 100)[100:].tolist()), threading.Event()

    def change(number, record):
        if number in slow:
            reading.set()
            time.sleep(0.2)  # of a window: 20 s
        return record

    with closing(make(changed(pictures(300), change), block=100, window=100).stream(0)) as stream:
        next(stream)
        assert reading.wait(30)
        began = time.perf_counter()
    assert time.perf_counter() - began < 5
    assert threads_now() == 0


def spied(source: Source):
    """A source that tells the numbers that are read, and how many records are alive."""
    read, alive = [], []

    def change(number, record):
        read.append(number)
        kept = replace(record)
        alive.append(weakref.ref(kept))
        return kept

    return changed(source, change), read, lambda: sum(one() is not None for one in alive)


def test_two_windows_of_records_are_in_memory_at_most_and_what_is_used_is_not():
    (source, read, alive), size = spied(pictures(1000)), 100
    moving = (os.cpu_count() or 1) + 3  # records that threads have in hand
    with closing(make(source, block=size, window=size).stream(0)) as stream:
        for made in itertools.islice(stream, 200):
            living = alive()
            assert len(read) <= (made.position * BATCH // size + 2) * size
            assert living <= len(read) - (made.position + 1) * BATCH + moving
    assert len(read) > 1600
    gc.collect()
    assert alive() == 0


def test_a_window_is_shared_and_what_is_left_over_is_not_read():
    ranks = [Order(1000, 90, 0, rank, 3, 100, 100) for rank in range(3)]
    order = epoch_order(1000, 0, 4, 100, 100)
    for window in range(10):
        held = [ours.in_window(4, window).tolist() for ours in ranks]
        assert {*itertools.chain(*held)} == {*order[100 * window : min(100 * window + 100, 990)].tolist()}
        assert sum(map(len, held)) == min(100, 990 - 100 * window)
    assert ranks[1].in_window(4, 3, first=360).tolist() == order[390:400].tolist()
    assert [ranks[0].after(4, window) for window in (0, 8, 9)] == [(4, 1), (4, 9), (5, 0)]
    assert Order(1000, 300, 0, 0, 1, 100, 100).after(4, 8) == (5, 0)  # its last window is not used


def test_going_on_in_the_middle_reads_two_windows_and_not_what_is_before():
    source, read, _ = spied(pictures(4000))
    batches = make(source, batch=10, block=100, window=200)
    order = epoch_order(4000, 0, 0, 100, 200)
    with closing(batches.stream(391)) as stream:  # in the window that begins with row 3800
        made = next(stream)
    assert made.numbers.tolist() == order[3910:3920].tolist()
    following = epoch_order(4000, 0, 1, 100, 200)[:200]
    assert len(read) <= 2 * 200
    assert set(read) <= {*order[3800:].tolist(), *following.tolist()}


def test_going_on_reads_none_of_a_windows_records_that_were_used():
    source, read, _ = spied(pictures(4000))
    with closing(make(source, batch=10, block=100, window=4000).stream(399)) as stream:
        next(stream)
    assert read[0] == epoch_order(4000, 0, 0, 100, 4000)[3990:].min() > 0


def test_records_are_read_in_runs_where_they_lie_near_one_another():
    spans = []

    def records(start, stop):
        spans.append((start, stop))
        return PICTURES.records(start, stop)

    rows = PictureRows(
        replace(PICTURES, length=999, records=records), CODEC, FRAMING, NONE, Order(999, 1, 0, 0, 1, 1, 1), None
    )
    held = rows.fetch(np.array([700, 1 + GAP, 1, 2 + 2 * GAP, 9]))
    assert spans == [(1, GAP + 2), (2 * GAP + 2, 2 * GAP + 3), (700, 701)]
    assert {number: record.name for number, record in held.items()} == {
        number: f"picture {number}" for number in (1, 9, 1 + GAP, 2 + 2 * GAP, 700)
    }


def test_a_stream_is_ahead_of_its_user_and_not_without_end():
    read = []

    def change(number, record):
        read.append(number)
        return record

    with closing(make(changed(STORED, change)).stream(0)) as stream:
        next(stream)
        while len(read) < BATCH * AHEAD:
            time.sleep(0.01)
        time.sleep(0.3)
        assert BATCH * AHEAD <= len(read) <= BATCH * (AHEAD + 2)


def test_small_and_large_batches_take_windows_as_they_come():
    for batch, block, window in [(1, 1, 1), (1, 3, 2), (COUNT, 2, 5), (50, 60, 70), (13, 5, 13)]:
        batches = make(batch=batch, block=block, window=window)
        for made in take(batches, 2, 2 * batches.per_epoch):
            assert made.numbers.tolist() == batches.at(made.position).numbers.tolist()
