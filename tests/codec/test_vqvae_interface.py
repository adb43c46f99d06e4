"""Every codec keeps the same promises: the palette, our VQ-VAE, and diffusers' VQModel."""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagegpt.codec import network
from imagegpt.codec.codec import Codec, dims_of, framing_for, grid_of
from imagegpt.codec.palette import PaletteCodec
from imagegpt.codec.pictures import Framing
from imagegpt.codec.preprocessor_file import load_preprocessor, save_preprocessor
from imagegpt.codec.stored import entries_of, read_codec
from imagegpt.codec.vqvae.config import VQVAEConfig
from imagegpt.codec.vqvae.model import VQVAE
from imagegpt.errors import InputError

K = 16
KINDS = ["palette", "vqvae", "vqmodel"]
NETWORKS = KINDS[1:]


def vqmodel() -> Codec:
    from diffusers import VQModel  # pyright: ignore

    from imagegpt.codec.diffusers_vq import DiffusersVQ

    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    model = VQModel(block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4, num_vq_embeddings=K, **blocks)
    model.quantize.embedding.weight.data.normal_()
    return DiffusersVQ(model)


def vqvae(factor: int = 2) -> VQVAE:
    return VQVAE(VQVAEConfig(factor=factor, num_codes=K, code_width=4, width=8, blocks=1, block_width=4)).eval()


@pytest.fixture(scope="module")
def codecs() -> dict[str, Codec]:
    torch.manual_seed(0)
    made: dict[str, Codec] = {
        "palette": PaletteCodec(np.random.default_rng(0).uniform(-1, 1, (K, 3))),
        "vqvae": spread(vqvae()),
    }
    if importlib.util.find_spec("diffusers"):
        made["vqmodel"] = vqmodel()
    return made


def spread(codec: VQVAE) -> VQVAE:
    """Codes where the encoder's vectors are, so that pictures have several."""
    with torch.no_grad():
        z = codec.encoder(torch.rand(8, 3, 32, 32) * 2 - 1).permute(0, 2, 3, 1).reshape(-1, codec.config.code_width)
        codec.quantizer.codebook.copy_(z[torch.randperm(len(z))[:K]])
    return codec


@pytest.fixture
def codec(request, codecs) -> Codec:
    if request.param not in codecs:
        pytest.skip("diffusers is not installed")
    return codecs[request.param]


every = pytest.mark.parametrize("codec", KINDS, indirect=True)
each_network = pytest.mark.parametrize("codec", NETWORKS, indirect=True)


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


# --- shapes and kinds of numbers


@every
@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("size", [(8, 8), (4, 12), (2, 2), (10, 6)])
def test_leading_dimensions_stay(codec, leading, size):
    image = pictures(*leading, *size)
    ids = codec.encode(image)
    assert ids.shape == (*leading, size[0] // codec.factor, size[1] // codec.factor)
    assert ids.dtype == np.int64
    seen = codec.decode(ids)
    assert (seen.shape, seen.dtype) == (image.shape, np.uint8)


@every
@pytest.mark.parametrize("shape", [(2, 0, 4), (0, 0), (4, 0), (0, 2, 2)])
def test_nothing_is_coded_as_nothing(codec, shape):
    ids = codec.encode(pictures(*shape))
    assert ids.size == 0
    assert codec.decode(ids).shape == (*shape, 3)


@every
def test_pictures_have_several_codes_all_of_which_there_are(codec):
    ids = codec.encode(pictures(4, 32, 32))
    assert len(np.unique(ids)) > K // 4
    assert ids.min() >= 0
    assert ids.max() < len(codec) == K


@every
def test_a_picture_is_coded_alone_as_in_a_batch(codec):
    batch = pictures(5, 12, 8)
    ids = codec.encode(batch)
    np.testing.assert_array_equal(np.stack([codec.encode(image) for image in batch]), ids)
    np.testing.assert_array_equal(np.stack([codec.decode(grid) for grid in ids]), codec.decode(ids))


@every
def test_floats_in_the_scale_have_the_ids_of_the_levels(codec):
    image = pictures(3, 8, 8)
    expected = codec.encode(image)
    for kind in (np.float32, np.float64, ">f4"):
        np.testing.assert_array_equal(codec.encode((image / 127.5 - 1).astype(kind)), expected)


@every
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "float16", "bfloat16"])
def test_tensors_give_tensors_with_the_ids_of_arrays(codec, dtype):
    image = torch.from_numpy(pictures(2, 8, 8))
    if dtype != "uint8":
        image = (image / 127.5 - 1).to(getattr(torch, dtype))
    ids = codec.encode(image)
    assert isinstance(ids, torch.Tensor)
    assert ids.dtype == torch.int64
    array = image.numpy() if dtype == "uint8" else image.double().numpy()
    np.testing.assert_array_equal(ids.numpy(), codec.encode(array))


@every
def test_ids_of_tensors_can_be_looked_up_by_what_learns(codec):
    ids = codec.encode(torch.from_numpy(pictures(2, 8, 8)).float().div(127.5).sub(1).requires_grad_())
    table = torch.nn.Embedding(K, 3)
    table(ids).sum().backward()
    assert table.weight.grad is not None


@every
@pytest.mark.parametrize(
    "view",
    [
        lambda p: p[:, ::2, ::-1],
        lambda p: p.transpose(0, 2, 1, 3),
        lambda p: np.asfortranarray(p),
        lambda p: np.broadcast_to(p[:1], p.shape),
        lambda p: p[..., ::-1],
    ],
    ids=["strided", "transposed", "fortran", "broadcast", "channels"],
)
def test_memory_may_lie_in_any_order(codec, view):
    for image in (pictures(3, 16, 8), pictures(3, 16, 8) / 127.5 - 1):
        seen = view(image)
        np.testing.assert_array_equal(codec.encode(seen), codec.encode(seen.copy()))
    if view(pictures(3, 16, 8)).strides[-1] > 0:
        tensor = torch.from_numpy(pictures(3, 8, 16)).transpose(1, 2)
        assert torch.equal(codec.encode(tensor), codec.encode(tensor.contiguous()))


@every
def test_ids_may_lie_in_any_order_and_be_of_any_whole_type(codec):
    ids = codec.encode(pictures(2, 8, 12))
    expected = codec.decode(ids)
    for kind in (np.uint8, np.int16, np.uint16, np.uint64, ">i4"):
        np.testing.assert_array_equal(codec.decode(ids.astype(kind)), expected)
    np.testing.assert_array_equal(codec.decode(ids.tolist()), expected)
    np.testing.assert_array_equal(codec.decode(torch.from_numpy(ids)), expected)
    np.testing.assert_array_equal(codec.decode(ids.transpose(0, 2, 1)), codec.decode(ids.transpose(0, 2, 1).copy()))


@every
def test_a_picture_that_can_only_be_read_is_taken_without_a_warning(codec):
    image = np.asarray(Image.new("RGB", (8, 8), (9, 99, 199)))
    assert not image.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codec.encode(image)


@every
def test_neither_pixels_nor_ids_are_changed(codec):
    image = pictures(1, 8, 8)
    ids = codec.encode(image)
    kept = ids.copy()
    codec.decode(ids)
    np.testing.assert_array_equal(image, pictures(1, 8, 8))
    np.testing.assert_array_equal(ids, kept)


# --- refusals


@every
@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), bool),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 1), np.float32),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4, 3), complex),
        np.full((4, 4, 3), "red"),
        np.full((4, 4, 3), None),
        np.uint8(3),
        [[[1, 2, 3]]],
    ],
    ids=lambda array: f"{np.asarray(array).dtype}{np.shape(array)}",
)
def test_what_is_no_rgb_is_refused(codec, array):
    with pytest.raises(ValueError, match=r"Pixels are uint8 or float RGB, .* not "):
        codec.encode(array)


@every
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.complex64])
def test_tensors_that_are_no_rgb_are_refused(codec, dtype):
    with pytest.raises(ValueError, match="Pixels are uint8 or float RGB"):
        codec.encode(torch.zeros((4, 4, 3), dtype=dtype))


@each_network
@pytest.mark.parametrize("shape", [(3,), (4, 3)])
def test_networks_code_whole_pictures_alone(codec, shape):
    with pytest.raises(ValueError, match=rf"height, width, 3\), not uint8 \({shape[0]}"):
        codec.encode(np.zeros(shape, np.uint8))


@each_network
@pytest.mark.parametrize("size", [(3, 4), (4, 3), (5, 5), (1, 1)])
def test_sides_that_can_not_be_divided_are_named(codec, size):
    with pytest.raises(ValueError, match=f"Pictures of {size[0]} x {size[1]} can't be divided into blocks of 2 x 2"):
        codec.encode(pictures(2, *size))
    with pytest.raises(InputError, match=f"{size[0]} x {size[1]} can't be divided"):
        grid_of(codec, Framing(*size))


@every
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(codec, bad):
    image = np.zeros((4, 4, 3))
    image[1, 2, 0] = bad
    for given_ in (image, image.astype(np.float16), torch.from_numpy(image)):
        with pytest.raises(ValueError, match="not finite"):
            codec.encode(given_)


@every
@pytest.mark.parametrize(
    ("bad", "words"),
    [(K, f"Id {K} "), (-1, "Id -1 "), (1 << 62, f"Id {1 << 62} "), (0.0, "whole numbers"), (True, "whole numbers")],
)
def test_ids_that_there_are_not_are_named(codec, bad, words):
    with pytest.raises(ValueError, match=words):
        codec.decode(np.full((1, 2, 2), bad))


@each_network
@pytest.mark.parametrize("ids", [3, [1, 2], np.empty(0, int)])
def test_networks_decode_grids_alone(codec, ids):
    with pytest.raises(ValueError, match="grids"):
        codec.decode(ids)


# --- parts


@each_network
@pytest.mark.parametrize("pixels", [1, 64, 150, 1 << 20])
def test_a_batch_in_several_parts_is_the_same(codec, pixels, monkeypatch):
    image = pictures(7, 8, 8)
    ids, seen = codec.encode(image), codec.decode(codec.encode(image))
    sizes = []
    inner = codec._ids
    monkeypatch.setattr(codec, "_ids", lambda x: sizes.append(len(x)) or inner(x))
    monkeypatch.setattr(network, "PIXELS", pixels)
    np.testing.assert_array_equal(codec.encode(image), ids)
    np.testing.assert_array_equal(codec.decode(ids), seen)
    assert sizes == {1: [1] * 7, 64: [1] * 7, 150: [2, 2, 2, 1], 1 << 20: [7]}[pixels]


# --- what a codec tells


@every
def test_what_it_tells_of_itself(codec):
    assert str(K) in codec.name
    assert len(codec.fingerprint) == 16
    int(codec.fingerprint, 16)
    assert dims_of(codec) == 3 * codec.factor**2
    assert grid_of(codec, Framing(8, 12)) == (8 // codec.factor, 12 // codec.factor)
    assert grid_of(codec, framing_for(codec, (3, 5))) == (3, 5)


@each_network
def test_a_networks_name_tells_its_blocks_and_it_has_no_table(codec):
    assert codec.name.endswith(f"of {K} codes for 2 x 2 pixels")
    assert codec.table is None
    assert codec  # its length is no truth value to stumble over


@each_network
def test_colours_are_means_of_each_code_in_the_midst_of_its_like(codec):
    colors = codec.colors
    assert (colors.shape, colors.dtype) == ((K, 3), np.float32)
    for id_ in (0, 7, K - 1):
        middle = codec.decode(np.full((3, 3), id_))[2:4, 2:4]
        np.testing.assert_allclose(colors[id_], middle.mean((0, 1)) / 127.5 - 1, rtol=1e-6)


@each_network
@pytest.mark.parametrize("cell", [1, 2, 8])
def test_the_picture_shows_the_codes_in_rows(codec, cell):
    picture, zoom = np.asarray(codec.picture(cell)), max(1, cell // 2)
    assert picture.shape == (4 * 2 * zoom, 4 * 2 * zoom, 3)
    for id_ in (0, 5, K - 1):
        row, column = divmod(id_, 4)
        shown = picture[
            row * 2 * zoom : (row + 1) * 2 * zoom : zoom, column * 2 * zoom : (column + 1) * 2 * zoom : zoom
        ]
        np.testing.assert_array_equal(shown, codec.decode(np.full((3, 3), id_))[2:4, 2:4])


# --- folders


@every
def test_a_stored_codec_is_found_again(codec, tmp_path):
    entries = codec.store(tmp_path)
    again = read_codec({"other": 1, **entries}, tmp_path)
    assert entries_of({"other": 1, **entries}) == entries
    assert type(again) is type(codec)
    assert again.fingerprint == codec.fingerprint
    image = pictures(2, 16, 16)
    np.testing.assert_array_equal(again.encode(image), codec.encode(image))
    np.testing.assert_array_equal(again.decode(codec.encode(image)), codec.decode(codec.encode(image)))


@every
def test_a_preprocessors_folder_keeps_codec_and_framing(codec, tmp_path):
    framing = Framing(16, 24, "center", 3)
    for _ in range(2):  # over what is there
        save_preprocessor(tmp_path, codec, framing)
    again, found = load_preprocessor(tmp_path)
    assert found == framing
    assert again.fingerprint == codec.fingerprint


@each_network
def test_a_framing_that_does_not_fit_the_codec_is_named(codec, tmp_path):
    save_preprocessor(tmp_path, codec, Framing(15, 16))
    with pytest.raises(InputError, match=r"preprocessor_config\.json: Pictures of 15 x 16 can't be divided"):
        load_preprocessor(tmp_path)


@each_network
def test_a_codec_can_not_be_stored_where_a_file_is(codec, tmp_path):
    (tmp_path / "vqvae").write_text("")
    (tmp_path / "vqmodel").write_text("")
    with pytest.raises(InputError, match="can't be made"):
        codec.store(tmp_path)


@pytest.mark.parametrize("entry", ["vqvae", "vqmodel"])
@pytest.mark.parametrize("name", ["../x", "..", "/etc", "a/b", "./a", "", 3, ["x"], {"x": 1}, True])
def test_an_entry_names_a_folder_beside_it_alone(entry, name, tmp_path):
    with pytest.raises(ValueError, match=f"{entry} must be the name of a folder beside it, not "):
        read_codec({entry: name}, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(f'{{"size": 4, "{entry}": "../x"}}')
    with pytest.raises(InputError, match=r"preprocessor_config\.json can't be used: .* beside it"):
        load_preprocessor(tmp_path)


def test_an_entry_that_is_null_is_none(tmp_path):
    entries = {"vqvae": None, "vqmodel": None, "clusters": [[0, 0, 0]]}
    assert isinstance(read_codec(entries, tmp_path), PaletteCodec)
    with pytest.raises(KeyError):
        read_codec({"vqvae": None}, tmp_path)


# --- properties


@pytest.mark.parametrize("kind", NETWORKS)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 5),
    st.integers(1, 5),
    st.booleans(),
)
def test_ids_of_random_pictures(codecs, kind, seed, leading, height, width, tensor):
    if kind not in codecs:
        pytest.skip("diffusers is not installed")
    codec, rng = codecs[kind], np.random.default_rng(seed)
    image = rng.integers(0, 256, (*leading, 2 * height, 2 * width, 3), dtype=np.uint8)
    ids = codec.encode(torch.from_numpy(image)).numpy() if tensor else codec.encode(image)
    assert ids.shape == (*leading, height, width)
    assert ((ids >= 0) & (ids < K)).all()
    np.testing.assert_array_equal(ids, codec.encode(image / 127.5 - 1))
    assert codec.decode(ids).shape == image.shape
