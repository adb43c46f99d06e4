"""Detector: fitted, scored in every way that there is, saved and read."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from anomalies import FPR, fitted, noisy, striped, write
from imagegpt import ImageGPT, scoring
from imagegpt.anomaly import Detector, detector
from imagegpt.anomaly.background import Counter
from imagegpt.anomaly.calibration import p_values
from imagegpt.anomaly.methods import METHODS, Methods
from imagegpt.anomaly.splitting import split
from imagegpt.anomaly.statistics import measure
from imagegpt.checkpoint import fingerprint
from imagegpt.data.sources import open_source
from imagegpt.errors import InputError
from making import tokenise


@pytest.fixture(scope="module")
def made(tiny_folder):
    return fitted(tiny_folder)


def same(first, second):
    for method in METHODS:
        np.testing.assert_allclose(first.scores[method], second.scores[method], rtol=1e-5, atol=1e-5)
        assert np.array_equal(first.p_values[method], second.p_values[method])


def test_it_is_what_its_parts_make(made, tiny_folder, tmp_path):
    """By hand: the three parts, the mutations, the statistics, the scores."""
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu")
    source = open_source(write(tmp_path / "normal", striped(80)))
    parts = [model.encode([record.picture for record in part]) for part in split(source, 0.25, 0)]
    rng, counter = np.random.default_rng(0), Counter((8, 8), 16)
    others = rng.integers(0, 16, parts[0].shape)
    replaced = rng.random(parts[0].shape) < 0.1
    assert 0.08 < replaced.mean() < 0.12
    counter.add(np.where(replaced, others, parts[0]))
    background = counter.background()
    measured = [measure(ids, model.score_ids(ids), background, model.codec, "png") for ids in parts[1:]]
    np.testing.assert_allclose(made.fitted.reference_NS, measured[0], rtol=1e-5)
    np.testing.assert_allclose(made.fitted.heldout_HS, measured[1], rtol=1e-5)
    expected = Methods(measured[0]).scores(measured[1])
    for method in METHODS:
        np.testing.assert_allclose(made.heldout[method], expected[method], rtol=1e-3, atol=1e-4)


def test_its_facts(made, tiny_folder):
    facts = made.facts
    assert (facts.records, facts.background, facts.skipped) == (80, 40, 0)
    assert len(made.fitted.reference_NS) == len(made.fitted.heldout_HS) == 20
    assert facts.fingerprint == fingerprint(tiny_folder) and facts.model == str(tiny_folder)
    assert facts.scored_by == "likelihood" and facts.fpr == FPR and facts.grid == (8, 8)


def test_noise_is_found_and_stripes_are_not(made):
    odd, usual = made.score(noisy(20)), made.score(striped(40, seed=1))
    assert odd.flagged().all() and len(odd) == 20
    assert usual.flagged().mean() < 0.5 and (odd.p_values["density"] == 1 / 21).all()
    assert set(odd.statistics) == {"nats", "entropy", "spread", "background", "compressed"}


def test_verdicts_belong_together(made):
    verdicts = made.score([*striped(10, seed=2), *noisy(10)])
    for method in METHODS:
        assert np.array_equal(verdicts.p_values[method], p_values(made.heldout[method], verdicts.scores[method]))
        assert np.array_equal(verdicts.flagged(method), verdicts.p_values[method] <= FPR + 1e-9)
    with pytest.raises(InputError, match="method must be"):
        verdicts.flagged("luck")


def test_the_rate_can_be_chosen_anew(made):
    pictures = [*striped(30, seed=3), *noisy(5)]
    strict, loose = made.score(pictures, fpr=0.05), made.score(pictures, fpr=0.8)
    assert strict.flagged("ratio").sum() < loose.flagged("ratio").sum()
    same(strict, loose)
    with pytest.raises(InputError, match=r"0\.01 needs 99 held-out"):
        made.score(pictures, fpr=0.01)


@pytest.mark.parametrize("fpr", [0.05, 0.2, 0.5])
def test_the_held_out_pictures_are_flagged_at_the_rate(made, fpr):
    for method, limit in made.thresholds(fpr).items():
        assert fpr - 2 / 20 <= (made.heldout[method] > limit).mean() <= fpr


def test_pictures_files_and_ids_are_scored_alike(made, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "BATCH", 64)
    pictures = [*striped(60, seed=4), *noisy(20)]
    expected = made.score(pictures)
    files = open_source(write(tmp_path / "files", pictures))
    ids = made.model.encode(pictures).astype(np.uint16)
    codec = made.model.codec.fingerprint
    tokens = open_source(tokenise(tmp_path / "ids", ids, codec=codec, grid=[8, 8], classes=[]))
    for source in (files, tokens):
        told = []
        batches = list(made.score_source(source, progress=lambda done, total, told=told: told.append((done, total))))
        assert [len(batch) for batch, _ in batches] == [64, 16] and (64, 80) in told
        assert told[-1] == (80, 80) and told == sorted(told)
        scores = np.concatenate([verdicts.scores["density"] for _, verdicts in batches])
        np.testing.assert_allclose(scores, expected.scores["density"], rtol=1e-4)
    same(made.score(pictures[0]), made.score(pictures[:1]))


def test_data_by_its_name_and_pictures_make_the_same_detector(made, tiny_folder, tmp_path):
    folder, told = write(tmp_path / "normal", striped(80)), []
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu")
    for data in (str(folder), folder, open_source(folder)):
        again = Detector.fit(model, data, fpr=FPR, progress=lambda done, total: told.append((done, total)))
        assert np.array_equal(again.fitted.heldout_HS, made.fitted.heldout_HS)
        assert again.facts.data == str(folder)
    assert told[-1] == (40, 40) and told == sorted(set(told)) * 3


def test_options_change_what_they_say(made, tiny_folder):
    other = fitted(tiny_folder, seed=1)
    assert not np.array_equal(other.fitted.heldout_HS, made.fitted.heldout_HS)
    small = fitted(tiny_folder, compressor="zlib", holdout=0.5)
    assert len(small.fitted.heldout_HS) == 40 and len(small.fitted.reference_NS) == 13
    assert small.facts.compressor == "zlib" and small.facts.background == 27


def test_bad_pictures(made, tiny_folder, tmp_path):
    folder = write(tmp_path / "normal", striped(80))
    for number in (3, 50, 61):
        (folder / f"{number:03}.png").write_bytes(b"nothing")
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu")
    with pytest.raises(InputError, match="png"):
        Detector.fit(model, folder, fpr=FPR)
    skipping = Detector.fit(model, folder, fpr=FPR, on_error="skip")
    facts = skipping.facts
    assert facts.skipped == len(skipping.skipped) == 3
    used = facts.background + len(skipping.fitted.reference_NS) + len(skipping.fitted.heldout_HS)
    assert used == 77 and facts.records == 80
    batches = list(made.score_source(open_source(folder), on_error="skip"))
    assert sum(len(verdicts) for _, verdicts in batches) == 77
    assert len([sentence for batch, _ in batches for sentence in batch.skipped]) == 3
    for path in folder.iterdir():
        path.write_bytes(b"nothing")
    assert not any(len(verdicts) for _, verdicts in made.score_source(open_source(folder), on_error="skip"))
    with pytest.raises(InputError, match="none of the 40 pictures for the background"):
        Detector.fit(model, folder, fpr=FPR, on_error="skip")


def test_too_few_pictures(tiny_folder):
    model = ImageGPT.from_pretrained(tiny_folder, device="cpu")
    for count, words in (
        (1, "1 normal pictures are too few to be split"),
        (8, "needs 4 held-out normal pictures or more, and there are 2"),
        (20, "There are 5 normal pictures to fit to, and it takes 10"),
    ):
        with pytest.raises(InputError, match=words):
            Detector.fit(model, striped(count), fpr=FPR)
    for options in ({"fpr": 0}, {"fpr": 1.5}, {"holdout": 1}, {"compressor": "jpeg"}, {"seed": -1}):
        with pytest.raises(InputError):
            Detector.fit(model, striped(80), **options)


def test_a_bidirectional_model(tmp_path):
    from classifiers import make

    folder = make(tmp_path / "bert", causal=False)
    detector = fitted(folder)
    assert detector.facts.scored_by == "pseudo-likelihood"
    assert detector.score(noisy(5)).flagged().all()


def test_what_is_saved_is_what_is_read(made, tiny_folder, tmp_path):
    made.save(tmp_path / "one.safetensors")
    again = Detector.load(tmp_path / "one.safetensors", device="cpu")
    again.save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert again.facts == made.facts and again.thresholds() == made.thresholds()
    pictures = [*striped(9, seed=5), *noisy(9)]
    same(again.score(pictures), made.score(pictures))
    same(Detector.load(tmp_path / "one.safetensors", made.model).score(pictures), made.score(pictures))
    moved = shutil.copytree(tiny_folder, tmp_path / "moved")
    same(Detector.load(tmp_path / "one.safetensors", moved, device="cpu").score(pictures), made.score(pictures))


def test_it_belongs_to_a_model(made, folder, tmp_path, monkeypatch):
    from classifiers import change

    made.save(tmp_path / "made.safetensors")
    bf16 = ImageGPT.from_pretrained(folder, device="cpu", precision="bf16")
    with pytest.raises(InputError, match=r"was fitted in fp32, and .* is opened in bf16"):
        Detector.load(tmp_path / "made.safetensors", bf16)
    change(folder, **{"transformer.ln_f.weight": made.model.model.transformer.ln_f.weight.data * 2})
    with pytest.raises(InputError, match="fitted to another model"):
        Detector.load(tmp_path / "made.safetensors", folder)
    monkeypatch.setattr(detector, "compressor_version", lambda name: "png 9.9")
    with pytest.warns(UserWarning, match=r"here is png 9\.9"):
        Detector.load(tmp_path / "made.safetensors", made.model)


def test_another_codec(made, folder, tmp_path):
    from imagegpt.codec.palette import PaletteCodec
    from imagegpt.codec.pictures import Framing
    from imagegpt.codec.preprocessor_file import save_preprocessor

    made.save(tmp_path / "made.safetensors")
    save_preprocessor(folder, PaletteCodec(-made.model.codec.clusters), Framing(8, 8))
    with pytest.raises(InputError, match="another codec or grid"):
        Detector.load(tmp_path / "made.safetensors", folder)


def test_batches_do_not_matter(made, tiny_folder, monkeypatch):
    monkeypatch.setattr(scoring, "BATCH", 7)
    np.testing.assert_allclose(fitted(tiny_folder).fitted.heldout_HS, made.fitted.heldout_HS, rtol=1e-5)
