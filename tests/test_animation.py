"""The order of drawing, id by id, and what comes out of a GIF again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from imagegpt import ImageGPT
from imagegpt.animation import drawing_frames, drawing_sheet, write_gif
from imagegpt.errors import InputError
from imagegpt.sheet import enlarge, sample_sheet


def as_ids(ids_GT):
    """In the place of pictures: what is seen of each sample."""
    return [row.tolist() for row in ids_GT]


def slow_frames(ids_GT, known_GT, every):
    """Draw one id after another, and look after each `every`."""
    samples = []
    for ids_T, known_T in zip(ids_GT, known_GT, strict=True):
        seen = [int(id_) if known else -1 for id_, known in zip(ids_T, known_T, strict=True)]
        states, drawn = [list(seen)], 0
        for place, known in enumerate(known_T):
            if not known:
                seen[place] = int(ids_T[place])
                drawn += 1
                if drawn % every == 0:
                    states.append(list(seen))
        if states[-1] != seen:
            states.append(list(seen))
        samples.append(states)
    count = max(len(states) for states in samples)
    return [[states[min(frame, len(states) - 1)] for states in samples] for frame in range(count)]


def drawn(seed, samples=3, length=12, part=0.5):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 9, (samples, length)), rng.random((samples, length)) < part


@settings(max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 14), st.sampled_from([0, 0.2, 0.8, 1]))
def test_frames_are_those_of_the_slow_way(seed, every, part):
    ids_GT, known_GT = drawn(seed, part=part)
    assert list(drawing_frames(as_ids, ids_GT, known_GT, every)) == slow_frames(ids_GT, known_GT, every)


def test_what_is_known_after_unknown_ids_is_seen_from_the_first_frame_on():
    ids_GT, known_GT = drawn(0)
    first, *_, last = drawing_frames(as_ids, ids_GT, known_GT, 2)
    np.testing.assert_array_equal(first, np.where(known_GT, ids_GT, -1))
    np.testing.assert_array_equal(last, ids_GT)


@pytest.mark.parametrize("stopped", [0, 1, 4, 9])
def test_samples_that_were_stopped_are_shown_as_far_as_they_came(stopped):
    ids_GT, _ = drawn(0)
    known_GT = np.zeros(ids_GT.shape, bool)
    ids_GT[:, stopped:] = -1
    frames = list(drawing_frames(as_ids, ids_GT, known_GT, 4))
    np.testing.assert_array_equal(frames[0], np.full(ids_GT.shape, -1))
    np.testing.assert_array_equal(frames[-1], ids_GT)
    assert len(frames) == 1 + -(-stopped // 4)


def test_nothing_to_draw_is_one_frame():
    ids_GT, _ = drawn(0)
    assert list(drawing_frames(as_ids, ids_GT, np.ones(ids_GT.shape, bool), 3)) == [as_ids(ids_GT)]


def test_the_frames_of_a_prompt_are_those_of_the_stream(either_folder):
    model = ImageGPT.from_pretrained(either_folder, device="cpu")
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    results = list(model.stream(picture, keep=0.5, num_samples=2, seed=0))
    known_GT = results[-1].known.repeat(2, 0)
    frames = list(drawing_frames(model.decode, results[-1].ids, known_GT, model.grid[1]))
    assert len(frames) == 1 + len(results) == 5
    for frame, result in zip(frames[1:], results, strict=True):
        for image, streamed in zip(frame, result.images[0], strict=True):
            np.testing.assert_array_equal(np.asarray(image), np.asarray(streamed))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"every": 0}, "every must be at least 1"),
        ({"known_GT": np.zeros((3, 11), bool)}, "one shape"),
        ({"ids_GT": np.zeros(12, int), "known_GT": np.zeros(12, bool)}, "one shape"),
    ],
)
def test_what_can_not_be_shown_is_told_at_once(changes, words):
    ids_GT, known_GT = drawn(0)
    with pytest.raises(InputError, match=words):
        drawing_frames(as_ids, **{"ids_GT": ids_GT, "known_GT": known_GT, "every": 1, **changes})


def noise(seed, colors=None, shape=(8, 8)):
    rng = np.random.default_rng(seed)
    if colors is None:
        return Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    palette = np.random.default_rng(99).integers(0, 256, (colors, 3), dtype=np.uint8)
    return Image.fromarray(palette[rng.integers(0, colors, shape)])


def read(path):
    """Pixels and milliseconds of each frame."""
    with Image.open(path) as gif:
        frames = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(gif)]
        return gif.info, [pixels for pixels, _ in frames], [time for _, time in frames]


def test_a_sheet_has_every_sample_large_and_one_alone_has_no_margin():
    images = [noise(seed) for seed in range(3)]
    assert drawing_sheet(images).tobytes() == sample_sheet(images).tobytes()
    assert drawing_sheet(images[:1]).tobytes() == enlarge(images[0]).tobytes()


@pytest.mark.parametrize("colors", [1, 2, 3, 200, 256])
def test_a_gif_of_few_colours_is_exact(tmp_path, colors):
    frames = [noise(seed, colors, (20, 30)) for seed in range(5)]
    write_gif(tmp_path / "a.gif", iter(frames), seconds=0.06, last=2)
    info, pixels, times = read(tmp_path / "a.gif")
    assert info["loop"] == 0
    shown = frames if colors > 1 else frames[:1]  # equal frames are one, that long
    assert len(pixels) == len(shown)
    assert times == [60] * 4 + [2000] if colors > 1 else sum(times) == 2240
    for got, frame in zip(pixels, shown, strict=True):
        np.testing.assert_array_equal(got, np.asarray(frame))


def test_a_gif_of_many_colours_is_near_and_does_not_flicker(tmp_path):
    ramp = np.stack(np.meshgrid(np.arange(0, 256, 4), np.arange(0, 256, 4)), -1).astype(np.uint8)
    last = np.concatenate([ramp, np.full((64, 64, 1), 128, np.uint8)], 2)
    stages = [np.where(np.arange(64)[:, None, None] < rows, last, np.uint8(200)) for rows in (0, 16, 32, 48, 64)]
    write_gif(tmp_path / "a.gif", [Image.fromarray(stage) for stage in stages])
    _, pixels, times = read(tmp_path / "a.gif")
    assert (len(pixels), times) == (5, [60] * 4 + [2000])
    for got, stage in zip(pixels, stages, strict=True):
        assert np.sqrt(np.square(got.astype(int) - stage).mean()) < 8
    assert (pixels[0] == 200).all()
    for frame, rows in ((1, 16), (2, 32), (3, 48)):
        np.testing.assert_array_equal(pixels[frame][:rows], pixels[-1][:rows])


def test_frames_of_a_drawing_through_a_gif(tiny_folder, tmp_path):
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu")
    result = model.sample(5, seed=0)
    known_GT = np.zeros((5, 64), bool)
    frames = [drawing_sheet(images) for images in drawing_frames(model.decode, result.ids, known_GT, 8)]
    write_gif(tmp_path / "a.gif", frames, seconds=0.1, last=1)
    _, pixels, times = read(tmp_path / "a.gif")
    assert times == [100] * 8 + [1000]
    for got, frame in zip(pixels, frames, strict=True):
        np.testing.assert_array_equal(got, np.asarray(frame))
    assert pixels[-1].shape == (8 + 2 * (128 + 8), 8 + 3 * (128 + 8), 3)


def test_one_frame_and_other_modes(tmp_path):
    write_gif(tmp_path / "a.gif", [noise(0, 9).convert("RGBA")])
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 1
        np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), np.asarray(noise(0, 9)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": []}, "needs frames"),
        ({"frames": [noise(0), noise(0, shape=(8, 9))]}, "one size"),
        ({"seconds": 0.01}, "seconds must be 0.02 to 60 seconds, not 0.01"),
        ({"seconds": float("nan")}, "seconds"),
        ({"last": 61}, "last must be"),
    ],
)
def test_what_is_no_animation(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        write_gif(tmp_path / "a.gif", **{"frames": [noise(0)], **changes})
    assert list(tmp_path.iterdir()) == []


def test_a_gif_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.gif"
    write_gif(path, [noise(0)])
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match="No space left"):
        write_gif(path, [noise(1)])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="can't be written"):
        write_gif(tmp_path / "none" / "a.gif", [noise(1)])
