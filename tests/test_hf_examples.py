"""The published examples of ImageGPT run, their import line changed, and mean what they meant.

Each test names its source and starts with that example's calls; the checks follow. The sources:

* transformers' docstrings: today's, and those of its releases 4.13 to 4.24, which knew other names
* the model cards of openai/imagegpt-small, -medium and -large: of 2021, and since June 2023
* Niels Rogge's notebooks, which Hugging Face's page links, and his Space imagegpt-completion

Examples find their checkpoints by the names on the Hub: they run in a folder that has tiny ones in those places, of
8 x 8 ids where the real ones have 32 x 32. A picture on the Web is a file here, and what an example draws is checked
as an array.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import imagegpt
from faces import Causal, make
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import load_preprocessor, save_preprocessor
from imagegpt.codec.processor import Size

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:To copy construct:UserWarning")

EXAMPLES = Path(__file__).parents[1] / "examples"
SIZES = ("small", "medium", "large")
SIDE, COLORS = 8, 64  # more colours than top_k lets through


@pytest.fixture(scope="module")
def hubs(tmp_path_factory):
    """Two places with all checkpoints: in the files that we write, and in those of 2021, as the Hub still has them."""
    new, old = tmp_path_factory.mktemp("new"), tmp_path_factory.mktemp("old")
    model = make(Causal, vocab_size=COLORS + 1, n_positions=SIDE * SIDE, num_labels=2, attn_pdrop=0.1, resid_pdrop=0.1)
    model.save_pretrained(new)
    codec = PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (COLORS, 3)))
    save_preprocessor(new, codec, Framing(SIDE, SIDE))

    shutil.copy(new / "config.json", old)
    square = torch.ones(SIDE**2, SIDE**2, dtype=torch.uint8).tril()[None, None]
    masks = {f"transformer.h.{layer}.attn.bias": square for layer in range(model.config.n_layer)}
    masks |= {name.replace(".bias", ".masked_bias"): torch.tensor(-1e4) for name in masks}
    torch.save(model.state_dict() | masks, old / "pytorch_model.bin")
    settings = {"do_normalize": True, "do_resize": True, "resample": 2, "size": SIDE}
    settings |= {"feature_extractor_type": "ImageGPTFeatureExtractor", "clusters": codec.clusters.tolist()}
    (old / "preprocessor_config.json").write_text(json.dumps(settings))

    places = {}
    for name, checkpoint in {"our files": new, "the Hub's files": old}.items():
        places[name] = tmp_path_factory.mktemp("hub")
        (places[name] / "openai").mkdir()
        for size in SIZES:
            (places[name] / "openai" / f"imagegpt-{size}").symlink_to(checkpoint)
        for file in EXAMPLES.glob("*.jpg"):
            (places[name] / file.name).symlink_to(file)
    return places


@pytest.fixture(params=["our files", "the Hub's files"])
def hub(request, hubs, monkeypatch) -> None:
    monkeypatch.chdir(hubs[request.param])
    torch.manual_seed(0)


# What examples mean, from elsewhere.


def palette() -> PaletteCodec:
    return load_preprocessor(Path("openai/imagegpt-small"))[0]


def ids_of(picture: str) -> torch.Tensor:
    """(1, 64) ids: the nearest colours of the picture at 8 x 8."""
    pixels = np.asarray(Image.open(picture).resize((SIDE, SIDE), Image.Resampling.BILINEAR)).reshape(-1, 1, 3)
    return torch.from_numpy(((pixels / 127.5 - 1 - palette().clusters) ** 2).sum(-1).argmin(-1))[None]


def peer(face: str):
    """transformers' own class, with the checkpoints' weights."""
    return getattr(transformers, face).from_pretrained("openai/imagegpt-small")


def check_samples(output: torch.Tensor, pictures: list[np.ndarray], context: torch.Tensor) -> None:
    """Whole pictures, begun with the context, as transformers samples them, in the palette's own decoding."""
    assert output.shape == (len(context), 65)
    assert torch.equal(output[:, : context.shape[1]], context)
    ids = output[:, 1:]
    assert ids.min() >= 0 and ids.max() < COLORS
    assert len(ids.unique(dim=0)) == len(ids)
    model = peer("ImageGPTForCausalImageModeling")
    torch.manual_seed(0)  # as before the example
    assert torch.equal(output, model.generate(context, max_length=65, temperature=1.0, do_sample=True, top_k=40))
    np.testing.assert_array_equal(pictures, palette().decode(ids.numpy()).reshape(-1, SIDE, SIDE, 3))
    assert {picture.dtype for picture in pictures} == {np.dtype(np.uint8)}


# transformers' docstrings of today.


def test_config():
    """ImageGPTConfig: the small model. (On no device: 76 million numbers are not wanted here.)"""
    from imagegpt import ImageGPTConfig, ImageGPTModel

    with torch.device("meta"):
        configuration = ImageGPTConfig()
        model = ImageGPTModel(configuration)
        configuration = model.config

        theirs = transformers.ImageGPTModel(transformers.ImageGPTConfig())
    assert configuration.vocab_size == 513
    assert model.num_parameters() == theirs.num_parameters()


@pytest.fixture(params=["transformers.AutoImageProcessor", "imagegpt.ImageGPTImageProcessor"])
def AutoImageProcessor(request):  # noqa: N802
    """The import line may keep transformers' class; tests/test_registration.py has it with our class behind it."""
    package, name = request.param.split(".")
    return getattr({"transformers": transformers, "imagegpt": imagegpt}[package], name)


def test_model(hub, AutoImageProcessor):
    """ImageGPTModel."""
    from imagegpt import ImageGPTModel

    with open("chelsea.jpg", "rb") as response:
        image = Image.open(response)
        image.load()

    image_processor = AutoImageProcessor.from_pretrained("openai/imagegpt-small")
    model = ImageGPTModel.from_pretrained("openai/imagegpt-small")

    inputs = image_processor(images=image, return_tensors="pt")
    outputs = model(**inputs)
    last_hidden_states = outputs.last_hidden_state

    assert torch.equal(inputs["input_ids"], ids_of("chelsea.jpg"))
    expected = peer("ImageGPTModel")(ids_of("chelsea.jpg")).last_hidden_state
    torch.testing.assert_close(last_hidden_states, expected, atol=1e-4, rtol=1e-4)


def test_causal_image_modeling(hub, AutoImageProcessor):
    """ImageGPTForCausalImageModeling, as since 4.27: `size` is a dictionary."""
    from imagegpt import ImageGPTForCausalImageModeling

    image_processor = AutoImageProcessor.from_pretrained("openai/imagegpt-small")
    model = ImageGPTForCausalImageModeling.from_pretrained("openai/imagegpt-small")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    batch_size = 4
    context = torch.full((batch_size, 1), model.config.vocab_size - 1)
    context = context.to(device)
    output = model.generate(
        input_ids=context, max_length=model.config.n_positions + 1, temperature=1.0, do_sample=True, top_k=40
    )

    clusters = image_processor.clusters
    height = image_processor.size["height"]
    width = image_processor.size["width"]

    samples = output[:, 1:].detach().cpu().numpy()
    samples_img = [
        np.reshape(np.rint(127.5 * (clusters[s] + 1.0)), [height, width, 3]).astype(np.uint8) for s in samples
    ]

    check_samples(output, samples_img, context)


def test_image_classification(hub, AutoImageProcessor):
    """ImageGPTForImageClassification: the checkpoint has no classifier, so its head is new."""
    from imagegpt import ImageGPTForImageClassification

    with open("chelsea.jpg", "rb") as response:
        image = Image.open(response)
        image.load()

    image_processor = AutoImageProcessor.from_pretrained("openai/imagegpt-small")
    model = ImageGPTForImageClassification.from_pretrained("openai/imagegpt-small")

    inputs = image_processor(images=image, return_tensors="pt")
    outputs = model(**inputs)
    logits = outputs.logits

    states = peer("ImageGPTModel")(ids_of("chelsea.jpg")).last_hidden_state
    torch.testing.assert_close(logits, states.mean(1) @ model.score.weight.T, atol=1e-4, rtol=1e-4)
    assert logits.shape == (1, 2)


# transformers' docstrings of its first releases.


def test_model_of_the_first_releases(hub):
    from imagegpt import ImageGPTFeatureExtractor, ImageGPTModel

    image = Image.open("chelsea.jpg")

    feature_extractor = ImageGPTFeatureExtractor.from_pretrained("openai/imagegpt-small")
    model = ImageGPTModel.from_pretrained("openai/imagegpt-small")

    inputs = feature_extractor(images=image, return_tensors="pt")
    outputs = model(**inputs)
    last_hidden_states = outputs.last_hidden_state

    expected = peer("ImageGPTModel")(ids_of("chelsea.jpg")).last_hidden_state
    torch.testing.assert_close(last_hidden_states, expected, atol=1e-4, rtol=1e-4)


def test_image_classification_of_the_first_releases(hub):
    from imagegpt import ImageGPTFeatureExtractor, ImageGPTForImageClassification

    image = Image.open("chelsea.jpg")

    feature_extractor = ImageGPTFeatureExtractor.from_pretrained("openai/imagegpt-small")
    model = ImageGPTForImageClassification.from_pretrained("openai/imagegpt-small")

    inputs = feature_extractor(images=image, return_tensors="pt")
    outputs = model(**inputs)
    logits = outputs.logits

    states = peer("ImageGPTModel")(ids_of("chelsea.jpg")).last_hidden_state
    torch.testing.assert_close(logits, states.mean(1) @ model.score.weight.T, atol=1e-4, rtol=1e-4)


# The model cards. The docstring of ImageGPTForCausalImageModeling in 4.13 is that of 2021 on the small model.


@pytest.mark.parametrize("size", SIZES)
def test_model_card_of_2021(hub, size):
    from imagegpt import ImageGPTFeatureExtractor, ImageGPTForCausalImageModeling

    feature_extractor = ImageGPTFeatureExtractor.from_pretrained(f"openai/imagegpt-{size}")
    model = ImageGPTForCausalImageModeling.from_pretrained(f"openai/imagegpt-{size}")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    batch_size = 8
    context = torch.full((batch_size, 1), model.config.vocab_size - 1)
    context = torch.tensor(context).to(device)
    output = model.generate(
        pixel_values=context, max_length=model.config.n_positions + 1, temperature=1.0, do_sample=True, top_k=40
    )

    clusters = feature_extractor.clusters
    n_px = feature_extractor.size

    samples = output[:, 1:].cpu().detach().numpy()
    samples_img = [np.reshape(np.rint(127.5 * (clusters[s] + 1.0)), [n_px, n_px, 3]).astype(np.uint8) for s in samples]

    check_samples(output, samples_img, context)


@pytest.mark.parametrize("size", SIZES)
def test_model_card(hub, size):
    """As since June 2023; the processor's size goes on being used as a number."""
    from imagegpt import ImageGPTForCausalImageModeling, ImageGPTImageProcessor

    processor = ImageGPTImageProcessor.from_pretrained(f"openai/imagegpt-{size}")
    model = ImageGPTForCausalImageModeling.from_pretrained(f"openai/imagegpt-{size}")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    batch_size = 8
    context = torch.full((batch_size, 1), model.config.vocab_size - 1)
    context = torch.tensor(context).to(device)
    output = model.generate(
        pixel_values=context, max_length=model.config.n_positions + 1, temperature=1.0, do_sample=True, top_k=40
    )

    clusters = processor.clusters
    n_px = processor.size

    samples = output[:, 1:].cpu().detach().numpy()
    samples_img = [np.reshape(np.rint(127.5 * (clusters[s] + 1.0)), [n_px, n_px, 3]).astype(np.uint8) for s in samples]

    check_samples(output, samples_img, context)


# The notebooks and the Space.


def test_unconditional_generation(hub):
    """The first half of the notebook "(Un)conditional image generation with ImageGPT"."""
    from imagegpt import ImageGPTFeatureExtractor, ImageGPTForCausalImageModeling

    feature_extractor = ImageGPTFeatureExtractor.from_pretrained("openai/imagegpt-medium")
    model = ImageGPTForCausalImageModeling.from_pretrained("openai/imagegpt-medium")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    batch_size = 8
    context = torch.full((batch_size, 1), model.config.vocab_size - 1)
    context = torch.tensor(context).to(device)
    output = model.generate(
        input_ids=context, max_length=model.config.n_positions + 1, temperature=1.0, do_sample=True, top_k=40
    )

    clusters = feature_extractor.clusters

    samples = output[:, 1:].cpu().detach().numpy()
    samples_img = [np.reshape(np.rint(127.5 * (clusters[s] + 1.0)), [8, 8, 3]).astype(np.uint8) for s in samples]

    check_samples(output, samples_img, context)


@pytest.mark.parametrize("name_of_ids", ["input_ids", "pixel_values"])
@pytest.mark.parametrize("name_of_model", ["ImageGPTForCausalImageModeling", "ImageGPTForCausalLM"])
def test_conditional_generation(hub, name_of_model, name_of_ids):
    """The Space, in both of its states: the upper half is the picture's, which goes in several times."""
    from imagegpt import ImageGPTFeatureExtractor

    feature_extractor = ImageGPTFeatureExtractor.from_pretrained("openai/imagegpt-medium")
    model = getattr(imagegpt, name_of_model).from_pretrained("openai/imagegpt-medium")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    image = Image.open("chelsea.jpg")
    batch_size = 6
    encoding = feature_extractor([image for _ in range(batch_size)], return_tensors="pt")

    samples = getattr(encoding, name_of_ids).numpy()
    n_px = feature_extractor.size
    clusters = feature_extractor.clusters
    n_px_crop = 4
    primers = samples.reshape(-1, n_px * n_px)[:, : n_px_crop * n_px]

    primers_img = np.reshape(np.rint(127.5 * (clusters[primers[0]] + 1.0)), [n_px_crop, n_px, 3]).astype(np.uint8)

    context = np.concatenate((np.full((batch_size, 1), model.config.vocab_size - 1), primers), axis=1)
    context = torch.tensor(context).to(device)
    output = model.generate(input_ids=context, max_length=n_px * n_px + 1, temperature=1.0, do_sample=True, top_k=40)

    samples = output[:, 1:].cpu().detach().numpy()
    samples_img = [np.reshape(np.rint(127.5 * (clusters[s] + 1.0)), [n_px, n_px, 3]).astype(np.uint8) for s in samples]

    row1 = np.hstack(samples_img[:3])
    row2 = np.hstack(samples_img[3:])
    completion = Image.fromarray(np.vstack([row1, row2]))

    assert torch.equal(context[0, 1:], ids_of("chelsea.jpg")[0, :32])
    check_samples(output, samples_img, context)
    assert completion.size == (24, 16)
    np.testing.assert_array_equal(np.asarray(completion)[:4, 8:16], primers_img)


def test_linear_probing(hub):
    """The notebook "Linear probing with ImageGPT", on cats and rockets instead of CIFAR-10."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    LogisticRegression = linear_model.LogisticRegression
    from imagegpt import ImageGPTFeatureExtractor, ImageGPTModel

    feature_extractor = ImageGPTFeatureExtractor.from_pretrained("openai/imagegpt-small")
    model = ImageGPTModel.from_pretrained("openai/imagegpt-small")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    encoding = feature_extractor(Image.open("chelsea.jpg"), return_tensors="pt")
    pixel_values = encoding.pixel_values.to(device)
    outputs = model(pixel_values, output_hidden_states=True)
    hidden_states = outputs.hidden_states
    feature_vector = torch.mean(hidden_states[1], dim=1)

    def extract_features(examples):
        images = examples["img"]
        images = [np.array(image, dtype=np.uint8) for image in images]
        images = [np.moveaxis(image, source=-1, destination=0) for image in images]
        encoding = feature_extractor(images=images, return_tensors="pt")
        pixel_values = encoding.pixel_values.to(device)
        with torch.no_grad():
            outputs = model(pixel_values, output_hidden_states=True)
        hidden_states = outputs.hidden_states
        for i in range(len(hidden_states)):
            features = torch.mean(hidden_states[i], dim=1)
            examples[f"features_{i}"] = features.cpu().detach().numpy()
        return examples

    train_dataset, test_dataset = (extract_features(examples) for examples in cats_and_rockets())
    scores = {}
    for i in range(model.config.n_layer + 1):
        lr_clf = LogisticRegression(max_iter=1000)
        lr_clf.fit(train_dataset[f"features_{i}"], train_dataset["label"])
        training_score = lr_clf.score(train_dataset[f"features_{i}"], train_dataset["label"])
        test_score = lr_clf.score(test_dataset[f"features_{i}"], test_dataset["label"])
        scores[f"features_{i}"] = (training_score, test_score)

    expected = peer("ImageGPTModel")(ids_of("chelsea.jpg"), output_hidden_states=True).hidden_states
    torch.testing.assert_close(hidden_states, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(feature_vector, expected[1].mean(1), atol=1e-4, rtol=1e-4)
    first = feature_extractor(test_dataset["img"][0], return_tensors="pt").input_ids
    expected = peer("ImageGPTModel")(first, output_hidden_states=True).hidden_states[2].mean(1)
    np.testing.assert_allclose(test_dataset["features_2"][:1], expected.detach(), atol=1e-4)
    assert len(scores) == 3
    assert min(score for pair in scores.values() for score in pair) > 0.8


def cats_and_rockets():
    """Tiles of two photographs in two splits; the half of the tiles is dark or light in both."""
    splits = []
    for parity in range(2):
        tiles, labels = [], []
        for label, name in enumerate(["chelsea.jpg", "rocket.jpg"]):
            photograph = Image.open(name)
            corners = [(left, top) for top in range(0, 240, 60) for left in range(0, 360, 60)]
            for left, top in corners[parity::2]:
                tiles.append(photograph.crop((left, top, left + 60, top + 60)))
                labels.append(label)
        splits.append({"img": tiles, "label": labels})
    return splits


# What the old names promise beside the examples.


def test_a_size_is_a_dictionary_and_a_side(tmp_path):
    processor = imagegpt.ImageGPTImageProcessor([[0, 0, 0]], size=8)
    size = processor.size
    assert isinstance(size, dict) and size == {"height": 8, "width": 8} == dict(**size)
    assert (int(size), size * size, 4 * size, size // 2, list(range(size))) == (8, 64, 32, 4, [*range(8)])
    assert np.zeros((2, size, size)).shape == torch.zeros(2, size, size).shape == (2, 8, 8)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())["size"]
    assert saved == {"height": 8, "width": 8}
    loaded = imagegpt.ImageGPTImageProcessor.from_pretrained(tmp_path)
    assert (loaded.size, loaded.size["height"], int(loaded.size)) == (saved, 8, 8)


@pytest.mark.parametrize("use", [int, lambda size: size * 2, lambda size: np.zeros([size, size])])
def test_an_oblong_size_is_no_side(use):
    with pytest.raises(TypeError, match="4 x 6 is not one number"):
        use(Size(height=4, width=6))


@pytest.mark.parametrize("size", [4, {"height": 4, "width": 4}, Size(height=4, width=4)])
def test_a_size_goes_in_as_it_comes_out(hub, size):
    from imagegpt import ImageGPTImageProcessor

    made = [
        ImageGPTImageProcessor.from_pretrained("openai/imagegpt-small", size=size),
        ImageGPTImageProcessor(ImageGPTImageProcessor.from_pretrained("openai/imagegpt-small").clusters, size=size),
    ]
    called = ImageGPTImageProcessor.from_pretrained("openai/imagegpt-small")("chelsea.jpg", size=size)["input_ids"]
    for processor in made:
        assert processor.size == {"height": 4, "width": 4}
        np.testing.assert_array_equal(processor("chelsea.jpg")["input_ids"], called)
    assert np.shape(called) == (1, 16)


@pytest.mark.parametrize("argument", [{"clusters": [[0, 0, 0], [1, 1, 1]]}, {"do_color_quantize": False}])
def test_a_file_is_read_with_other_settings(hub, argument):
    """An argument of from_pretrained is as good as one of the class, and as one of the call."""
    from imagegpt import ImageGPTImageProcessor

    processor = ImageGPTImageProcessor.from_pretrained("openai/imagegpt-small", **argument)
    assert isinstance(processor.clusters, np.ndarray)
    expected = ImageGPTImageProcessor.from_pretrained("openai/imagegpt-small")("chelsea.jpg", **argument)
    for name, values in processor("chelsea.jpg").items():
        np.testing.assert_array_equal(values, expected[name])


def test_the_first_name_warns_and_is_not_saved(hub, tmp_path):
    with pytest.warns(FutureWarning, match="ImageGPTImageProcessor"):
        extractor = imagegpt.ImageGPTFeatureExtractor.from_pretrained("openai/imagegpt-small")
    assert isinstance(extractor, imagegpt.ImageGPTImageProcessor)
    extractor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert config["image_processor_type"] == "ImageGPTImageProcessor"
    assert "feature_extractor_type" not in config


def test_the_first_name_of_ids_is_no_key(hub):
    """A model refuses ids under both names."""
    extractor = imagegpt.ImageGPTFeatureExtractor.from_pretrained("openai/imagegpt-small")
    encoding = extractor(Image.open("chelsea.jpg"), return_tensors="pt").to("cpu")
    assert list(encoding) == ["input_ids"]
    assert encoding.pixel_values is encoding["pixel_values"] is encoding.input_ids
    with pytest.raises(AttributeError):
        _ = encoding.labels
    pixels = extractor(Image.open("chelsea.jpg"), do_color_quantize=False, return_tensors="pt")
    assert pixels.pixel_values.shape == (1, 3, 8, 8)
    with pytest.raises(AttributeError):
        _ = pixels.input_ids
