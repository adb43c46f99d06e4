"""Files of tiny models: what goes in comes out, in either backend, or one sentence says why not."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from compressing import decoded, photographs, same
from imagegpt import ImageGPT
from imagegpt.compression import Compression, compress, decompress, open_compressed, pictures
from imagegpt.compression.batches import BATCH_PIXELS, Batch, Coding, OtherIds, decode_batch, encode_batch
from imagegpt.compression.coder import Encoder
from imagegpt.compression.container import Fields, pack_short, read_file, write_file
from imagegpt.compression.frequencies import from_logits
from imagegpt.compression.ids import check_colors, code_ids
from imagegpt.compression.reading import read_batches
from imagegpt.data.records import source_of
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError, MissingExtra
from making import tokenise
from reference.range_coding import decode_words, ideal_bits

pytest.importorskip("constriction")
WAYS = {"onnx fp32": ("onnx", "fp32"), "onnx int8": ("onnx", "int8"), "torch fp32": ("torch", "fp32")}


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ImageGPT(tiny_folder, device="cpu", backend="onnx")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("lossless", [False, True])
def test_pictures_come_back(either_folder, tmp_path, way, lossless):
    backend, precision = WAYS[way]
    model = ImageGPT(either_folder, device="cpu", backend=backend, precision=precision)
    given = [*photographs(5), *photographs(1, 5, 11), *photographs(1, grey=True)]
    made = compress(model, given, tmp_path / "a.igpt", lossless, batch_size=3)
    found = open_compressed(tmp_path / "a.igpt")
    assert [rows for _, _, rows in found.layout.batches] == [3, 3, 1] and len(found) == 7
    assert (found.header.backend, found.header.precision, found.header.device) == (backend, precision, "cpu")
    assert made.bytes == (tmp_path / "a.igpt").stat().st_size and (made.pictures, made.made) == (7, 7)
    opened = found.open_model(either_folder)
    assert (opened.named_backend, opened.precision) == (backend, precision)
    small = [np.asarray(image) for image in model.decode(model.encode(given))]
    assert same(decoded(tmp_path / "a.igpt", opened), given if lossless else small)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (16, 16), (33, 20), (200, 150)])
def test_a_picture_of_any_size(either_folder, tmp_path, size):
    model = ImageGPT(either_folder, device="cpu", backend="onnx")
    given = photographs(1, *size)
    compress(model, given, tmp_path / "a.igpt", lossless=True)
    assert same(decoded(tmp_path / "a.igpt", model), given)


def test_the_words_are_those_of_a_plain_loop(model):
    """The same frequencies from a loop without any of our code paths, read by another decoder."""
    ids = model.encode(photographs(3))
    encoder = Encoder()
    found, nats = code_ids(model.backend, encoder, 3, ids)
    state = model.backend.prefill(np.full((1, 1), model.spec.sos), np.zeros(3, np.int64))
    frequencies, expected = [], 0.0
    for position in range(64):
        logits = state.logits_BK.astype(np.float64)
        for row in range(3):
            p = np.exp(logits[row] - logits[row].max())
            expected -= math.log(p[ids[row, position]] / p.sum())
        frequencies += from_logits(state.logits_BK).tolist()
        if position < 63:
            state.step(ids[:, position])
    words = encoder.words()
    assert decode_words(np.frombuffer(words, "<u4").tolist(), frequencies) == ids.T.reshape(-1).tolist()
    assert (found == ids).all() and nats == pytest.approx(expected, rel=1e-9)
    ideal = ideal_bits(ids.T.reshape(-1).tolist(), frequencies)
    assert ideal <= 8 * len(words) + 1 <= ideal + 66
    assert abs(ideal - expected / math.log(2)) < 0.01 * ideal


def test_what_interrupts_costs_a_batch(model, tmp_path, monkeypatch):
    given, out = photographs(7), tmp_path / "a.igpt"
    compress(model, given, tmp_path / "b.igpt", True, batch_size=2)

    def stop(done, total):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, given, out, True, batch_size=2, progress=stop)
    assert not out.exists() and len(list((tmp_path / "a.igpt.parts").glob("batch-*"))) == 2
    with pytest.raises(InputError, match="lossless True, not False"):
        compress(model, given, out, False, batch_size=2)
    # Another size of batches continues with the one that there is.
    made = compress(model, given, out, True, batch_size=5)
    assert (made.made, made.pictures) == (3, 7)
    assert out.read_bytes() == (tmp_path / "b.igpt").read_bytes() and not (tmp_path / "a.igpt.parts").exists()
    with pytest.raises(InputError, match="is there already"):
        compress(model, given, out)


def test_several_processes_share_the_work(model, tmp_path):
    given = photographs(6)
    compress(model, given, tmp_path / "b.igpt", batch_size=2)
    run = Compression(model, source_of(given), batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        run.run(tmp_path / "a.igpt", 1, 2, progress=lambda done, total: (_ for _ in ()).throw(KeyboardInterrupt))
    assert Compression(model, source_of(given), batch_size=2).run(tmp_path / "a.igpt", 1, 2).made == 2
    assert run.run(tmp_path / "a.igpt", 0, 2).made == 4
    assert (tmp_path / "a.igpt").read_bytes() == (tmp_path / "b.igpt").read_bytes()


def test_names_of_files_and_none_for_others(model, tmp_path):
    names = ["b/ü.png", "a/x.png", "a/y.png"]
    for name, pixels in zip(names, photographs(3), strict=True):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    compress(model, tmp_path / "in", tmp_path / "a.igpt", batch_size=2)
    found = [name for batch in decompress(tmp_path / "a.igpt", model) for name in batch.names]
    assert found == sorted(names)
    mixed = [tmp_path / "in" / "a/x.png", photographs(1)[0]]
    compress(model, mixed, tmp_path / "b.igpt")
    assert [batch.names for batch in decompress(tmp_path / "b.igpt", model)] == [["x.png", None]]


def test_ids_are_compressed_as_they_are(model, tmp_path):
    ids = np.random.default_rng(0).integers(0, 16, (5, 64)).astype(np.uint16)
    tokenise(tmp_path / "ids", ids, codec=model.codec.fingerprint, grid=[8, 8])
    compress(model, tmp_path / "ids", tmp_path / "a.igpt", batch_size=2)
    found = np.concatenate([batch.ids_BT for batch in decompress(tmp_path / "a.igpt", model)])
    assert (found == ids).all()
    with pytest.raises(InputError, match="holds ids"):
        compress(model, tmp_path / "ids", tmp_path / "b.igpt", lossless=True)
    tokenise(tmp_path / "other", ids, codec="0" * 16, grid=[8, 8])
    with pytest.raises(InputError, match="ids of the codec"):
        compress(model, tmp_path / "other", tmp_path / "b.igpt")


def test_large_pictures_have_batches_of_their_own(model):
    coding = Coding(model.backend, model.codec, model.framing, True)
    side = math.isqrt(BATCH_PIXELS // 2) + 1
    given = [np.zeros((side, side), np.uint8)] * 2 + [np.zeros((2, 2), np.uint8)]
    assert [len(batch) for batch in read_batches(source_of(given), coding, 0, 3)] == [1, 2]


def test_modes_that_are_kept_and_those_that_are_not(model, tmp_path):
    rgb, grey = photographs(1)[0], photographs(1, grey=True)[0]
    paletted = Image.fromarray(rgb).quantize(16)
    bits = Image.fromarray(grey > 100)
    turned = Image.fromarray(photographs(1, 8, 6)[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    given = [paletted, bits, grey, tmp_path / "turned.png"]
    compress(model, given, tmp_path / "a.igpt", lossless=True)
    expected = [np.asarray(paletted.convert("RGB")), np.asarray(bits.convert("L")), grey]
    expected.append(np.rot90(np.asarray(turned), -1))
    assert same(decoded(tmp_path / "a.igpt", model), expected)
    clear = paletted.copy()
    clear.info["transparency"] = 0
    for bad, words in (
        (Image.fromarray(rgb).convert("RGBA"), "transparent parts"),
        (clear, "transparent parts"),
        (Image.fromarray(grey.astype(np.uint16) * 257), "mode I;16"),
        (Image.fromarray(rgb).convert("CMYK"), "mode CMYK"),
        (grey.astype(np.uint16), "array of uint16"),
        (grey / 255, "array of float64"),
    ):
        with pytest.raises(InputError, match=words):
            compress(model, [bad], tmp_path / "b.igpt", lossless=True)
        assert not list(tmp_path.glob("b.igpt*"))
        compress(model, [bad], tmp_path / "b.igpt")  # what the model sees of it
        (tmp_path / "b.igpt").unlink()


def refused(path, model, words):
    with pytest.raises(InputError, match=words) as caught:
        decoded(path, model)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_other_models(model, folder, tmp_path):
    out = tmp_path / "a.igpt"
    compress(model, photographs(2), out)
    config = folder / "config.json"
    config.write_text(config.read_text() + "\n")
    other = ImageGPT(folder, device="cpu")
    refused(out, other, r"was made with the model \w{16} \(tiny\), and .* is \w{16}: name the right one with --model")
    with pytest.raises(InputError, match="was made with the model"):
        open_compressed(out).open_model()


OTHERS = {"codec": {"palette": "0" * 16}, "grid": {"grid": (4, 16)}, "crop": {"crop": "random"}}


@pytest.mark.parametrize("what", OTHERS)
def test_other_codecs_and_grids(model, tmp_path, what):
    compress(model, photographs(2), tmp_path / "a.igpt")
    rewrite(tmp_path / "a.igpt", **OTHERS[what])
    refused(tmp_path / "a.igpt", model, f"was made with the {what}")


def rewrite(path, **values):
    """Change a file's header; its checksum is right again."""
    layout = read_file(path)
    part = path.with_suffix(".part")
    contents = [layout.read(number) for number in range(len(layout.batches))]
    part.write_bytes(b"".join(pack_short(len(content)) + content for content in contents))
    write_file(path, replace(layout.header, **values), [part])


def test_another_machine_is_told_so_and_never_given_a_wrong_picture(model, tiny_folder, tmp_path):
    """Other probabilities, here those of the int8 backend, decode to other ids: the digest tells."""
    out = tmp_path / "a.igpt"
    compress(model, photographs(4), out, lossless=True)
    other = ImageGPT(tiny_folder, device="cpu", backend="onnx", precision="int8")
    refused(out, other, r"pictures 0 to 3 don't come out .* coded by onnx fp32 on cpu .* here are onnx int8 on cpu")


def test_a_device_that_is_not_here_is_replaced(model, tiny_folder, tmp_path):
    compress(model, photographs(1), tmp_path / "a.igpt")
    rewrite(tmp_path / "a.igpt", device="nowhere")
    found = open_compressed(tmp_path / "a.igpt")
    assert len(list(found.decode(found.open_model(tiny_folder)))) == 1
    rewrite(tmp_path / "a.igpt", backend="abacus")
    with pytest.raises(InputError, match="names the backend 'abacus'"):
        open_compressed(tmp_path / "a.igpt").open_model(tiny_folder)


def test_digests_guard_pixels_too(model):
    coding = Coding(model.backend, model.codec, model.framing, True)
    given = photographs(2)
    batch = Batch(model.encode(given), [None, None], given)
    content = encode_batch(coding, batch).content
    fields = Fields(content)
    whole = fields.take(fields.short(1 << 20))
    assert same(decode_batch(coding, whole).pixels or [], given)
    changed = bytearray(whole)
    changed[-9] ^= 64
    with pytest.raises(OtherIds):
        decode_batch(coding, bytes(changed))


def test_bidirectional_models_and_numbers_out_of_range(model, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_causal": False}))
    with pytest.raises(InputError, match=r"bidirectional \(BERT\) model"):
        compress(ImageGPT(folder, device="cpu"), photographs(1), tmp_path / "a.igpt")
    for size in (0, 1025):
        with pytest.raises(InputError, match="batch_size must be"):
            compress(model, photographs(1), tmp_path / "a.igpt", batch_size=size)
    for colors in (1, 1 << 17):
        with pytest.raises(InputError, match="2 to 65,536"):
            check_colors(colors)
    with pytest.raises(InputError, match="No picture"):
        compress(model, [], tmp_path / "a.igpt")
    assert not list(tmp_path.glob("a.igpt*"))


def test_too_little_memory_is_told(model, tmp_path, monkeypatch):
    compress(model, photographs(4), tmp_path / "a.igpt")
    monkeypatch.setattr(model.backend, "rows_that_fit", lambda prompt: 3)
    refused(tmp_path / "a.igpt", model, "4 pictures are decoded together, and the memory has room for 3")


def test_without_constriction(model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "constriction", None)
    with pytest.raises(MissingExtra, match=r"imagegpt\[compress\]"):
        compress(model, photographs(1), tmp_path / "a.igpt")


def test_an_open_source_and_a_path(model, tmp_path):
    Image.fromarray(photographs(1)[0]).save(tmp_path / "a.png")
    compress(model, open_source(tmp_path / "a.png"), tmp_path / "a.igpt")
    compress(model, str(tmp_path / "a.png"), tmp_path / "b.igpt")
    assert (tmp_path / "a.igpt").read_bytes() == (tmp_path / "b.igpt").read_bytes()
    [batch] = decompress(tmp_path / "a.igpt", model)
    assert batch.names == ["a.png"] and pictures(batch, model)[0].shape == (8, 8, 3)
