"""The quantiser's mathematics against the slow reference in float64, and its edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegpt.codec.vqvae import quantizer as module
from imagegpt.codec.vqvae.config import VQVAEConfig
from imagegpt.codec.vqvae.quantizer import VectorQuantizer, cluster
from reference import vqvae as slow


def make(codes_KC, counts_K=None, decay=0.9, restart=0.1) -> VectorQuantizer:
    codes = torch.as_tensor(np.asarray(codes_KC))
    quantizer = VectorQuantizer(
        VQVAEConfig(num_codes=len(codes), code_width=codes.shape[1], decay=decay, restart=restart)
    )
    quantizer = quantizer.to(codes.dtype)
    with torch.no_grad():
        quantizer.codebook.copy_(codes)
        if counts_K is not None:
            quantizer.counts.copy_(torch.as_tensor(np.asarray(counts_K)))
    return quantizer


def whole(rng, *shape) -> np.ndarray:
    """Small whole numbers: every sum and product of them is exact, and so are ties."""
    return rng.integers(-3, 4, shape).astype(np.float64)


# --- nearest


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 70), st.integers(1, 40), st.integers(1, 4))
def test_the_nearest_code_is_that_of_the_brute_force_and_ties_go_to_the_lowest(seed, codes, vectors, width):
    rng = np.random.default_rng(seed)
    codes_KC, z_VC = whole(rng, codes, width), whole(rng, vectors, width)
    ids = make(codes_KC.astype(np.float32)).nearest(torch.from_numpy(z_VC).float())
    assert ids.dtype == torch.int64
    assert ids.tolist() == [slow.nearest(vector, codes_KC) for vector in z_VC]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_vectors_that_are_no_whole_numbers_the_code_is_as_near_as_the_nearest(dtype):
    rng = np.random.default_rng(0)
    codes_KC, z_VC = rng.normal(size=(100, 16)), rng.normal(size=(200, 16))
    ids = make(torch.from_numpy(codes_KC).to(dtype)).nearest(torch.from_numpy(z_VC).to(dtype)).numpy()
    distances_VK = ((z_VC[:, None] - codes_KC) ** 2).sum(2)
    np.testing.assert_allclose(distances_VK[np.arange(200), ids], distances_VK.min(1), rtol=1e-5)
    assert (ids == distances_VK.argmin(1)).mean() > 0.99


@pytest.mark.parametrize("at_once", [1, 64, 200, 1 << 22])
def test_in_parts_the_nearest_are_the_same(at_once, monkeypatch):
    rng = np.random.default_rng(1)
    quantizer, z_VC = make(whole(rng, 16, 3)), torch.from_numpy(whole(rng, 45, 3))
    expected = quantizer.nearest(z_VC)
    sizes = []
    addmm = torch.addmm
    monkeypatch.setattr(
        torch, "addmm", lambda bias, part, *a, **k: sizes.append(len(part)) or addmm(bias, part, *a, **k)
    )
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    assert torch.equal(quantizer.nearest(z_VC), expected)
    assert max(sizes) == min(45, max(1, at_once // 16))
    assert sum(sizes) == 45


def test_no_vectors_have_no_codes():
    ids = make(np.eye(3, dtype=np.float32)).nearest(torch.empty(0, 3))
    assert (ids.shape, ids.dtype) == ((0,), torch.int64)


# Both codes are 1 in bfloat16's and float16's steps of distances, and the second is nearer.
CLOSE, BETWEEN = [[64.0, 0.0], [64.0, 0.125]], [64.0, 0.1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_in_float32(dtype):
    quantizer = make(np.float32(CLOSE)).to(dtype)
    assert quantizer.nearest(torch.tensor([BETWEEN]).to(dtype)).tolist() == [1]


@pytest.mark.parametrize("ask", ["nearest", "forward"])
def test_autocasting_leaves_distances_alone(ask):
    quantizer, vectors = make(np.float32(CLOSE)), torch.tensor([BETWEEN])
    with torch.autocast("cpu", torch.bfloat16):
        assert (vectors @ vectors.T).dtype == torch.bfloat16  # it is on
        if ask == "nearest":
            assert quantizer.nearest(vectors).tolist() == [1]
        else:
            quantized = quantizer(vectors[:, :, None, None])
            assert quantized.ids_Bhw.tolist() == [[[1]]]
            assert quantized.commitment.dtype == quantized.codes_BChw.dtype == torch.float32


# --- forward


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_quantised_vectors_ids_and_commitment_are_the_references(seed, codes, pictures, height, width):
    rng = np.random.default_rng(seed)
    codes_KC, z_BChw = rng.normal(size=(codes, 5)), rng.normal(size=(pictures, 5, height, width))
    quantized = make(codes_KC)(torch.from_numpy(z_BChw))
    expected, ids, commitment = slow.quantize(z_BChw, codes_KC)
    np.testing.assert_allclose(quantized.codes_BChw.numpy(), expected, atol=1e-14)
    np.testing.assert_array_equal(quantized.ids_Bhw.numpy(), ids)
    np.testing.assert_allclose(quantized.commitment.item(), commitment, rtol=1e-12)


@pytest.mark.parametrize("commitment", [0.0, 0.25, 3.0])
def test_the_gradient_goes_straight_through_and_commitment_adds_its_own(commitment):
    rng = np.random.default_rng(3)
    codes_KC, z_BChw, w = rng.normal(size=(6, 4)), rng.normal(size=(2, 4, 3, 2)), rng.normal(size=(2, 4, 3, 2))
    quantizer, z = make(codes_KC), torch.from_numpy(z_BChw).requires_grad_()
    quantized = quantizer(z)
    loss = (torch.from_numpy(w) * quantized.codes_BChw.sin()).sum() + commitment * quantized.commitment
    loss.backward()
    slope = w * np.cos(slow.quantize(z_BChw, codes_KC)[0])
    assert z.grad is not None
    np.testing.assert_allclose(
        z.grad.numpy(), slow.gradient(z_BChw, codes_KC, slope, commitment), rtol=1e-9, atol=1e-12
    )


def test_codes_and_counts_have_no_gradient_even_where_one_is_asked_for():
    quantizer = make(np.eye(3))
    assert not any(parameter.requires_grad for parameter in quantizer.parameters())
    quantized = quantizer(torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True))
    (quantized.codes_BChw.sum() + quantized.commitment).backward()
    assert quantizer.codebook.grad is None
    assert quantizer.counts.grad is None


def test_on_the_meta_device_shapes_are_known():
    with torch.device("meta"):
        quantized = VectorQuantizer(VQVAEConfig(num_codes=8, code_width=3))(torch.empty(2, 3, 4, 5))
    assert quantized.codes_BChw.shape == (2, 3, 4, 5)
    assert quantized.ids_Bhw.shape == (2, 4, 5)
    assert quantized.commitment.shape == ()


# --- moving averages


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_the_averages_of_several_batches_are_the_references(decay, seed):
    rng = np.random.default_rng(seed)
    counts, codes = rng.uniform(0, 3, 7), rng.normal(size=(7, 4))
    counts[2] = 0.0
    quantizer = make(codes, counts, decay)
    for _ in range(6):
        vectors = rng.normal(size=(20, 4))
        ids = rng.choice([0, 1, 2, 4, 6], 20)  # 3 and 5 are never used
        quantizer.update(*quantizer.measure(torch.from_numpy(vectors), torch.from_numpy(ids)))
        counts, codes = slow.update(counts, codes, vectors, ids, decay)
        np.testing.assert_allclose(quantizer.counts.numpy(), counts, rtol=1e-12, atol=1e-300)
        np.testing.assert_allclose(quantizer.codebook.numpy(), codes, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [0.0, 1.0, 1e-37, 1e-45])
def test_a_code_that_is_not_used_stays_bit_for_bit(count):
    """1e-45 is the smallest float32: a product with it keeps no digit of a code."""
    codes = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    quantizer = make(codes, np.float32([3, count, count, count, count]), decay=0.99)
    for _ in range(200):
        quantizer.update(*quantizer.measure(torch.ones(6, 4), torch.zeros(6, dtype=torch.long)))
    np.testing.assert_array_equal(quantizer.codebook.numpy()[1:], codes[1:])
    assert not np.array_equal(quantizer.codebook.numpy()[0], codes[0])
    assert (quantizer.counts[1:] <= count).all()


def test_a_code_whose_count_was_0_becomes_the_mean_of_its_vectors():
    quantizer = make(np.eye(2), [0.0, 0.0])
    vectors = torch.tensor([[3.0, 1.0], [5.0, 2.0]], dtype=torch.float64)
    quantizer.update(*quantizer.measure(vectors, torch.tensor([1, 1])))
    np.testing.assert_allclose(quantizer.codebook.numpy(), [[1, 0], [4, 1.5]], rtol=1e-15)
    np.testing.assert_allclose(quantizer.counts.numpy(), [0, 0.2], rtol=1e-12)


def test_measures_are_counts_and_sums():
    quantizer = make(np.zeros((4, 2)))
    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)
    counts_K, sums_KC = quantizer.measure(vectors, torch.tensor([3, 0, 3]))
    assert counts_K.tolist() == [1, 0, 0, 2]
    assert sums_KC.tolist() == [[3, 4], [0, 0], [0, 0], [6, 8]]


def test_measures_of_parts_add_up_to_those_of_the_whole():
    rng = np.random.default_rng(5)
    quantizer, vectors = make(np.zeros((4, 2))), torch.from_numpy(whole(rng, 10, 2))
    ids = torch.from_numpy(rng.integers(0, 4, 10))
    both = [quantizer.measure(vectors[part], ids[part]) for part in (slice(0, 3), slice(3, 10))]
    for first, second, expected in zip(*both, quantizer.measure(vectors, ids), strict=True):
        assert torch.equal(first + second, expected)


# --- dead codes


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.03, 0.5, 0.9]))
def test_exactly_the_codes_below_a_part_of_the_mean_are_put_elsewhere(seed, restart):
    rng = np.random.default_rng(seed)
    counts, codes, places = rng.exponential(size=9) ** 4, rng.normal(size=(9, 3)), rng.normal(size=(9, 3))
    quantizer = make(codes, counts, restart=restart)
    dead = quantizer.revive(torch.from_numpy(places))
    expected_counts, expected_codes, expected_dead = slow.revive(counts, codes, places, restart)
    np.testing.assert_array_equal(dead.numpy(), expected_dead)
    np.testing.assert_array_equal(quantizer.codebook.numpy(), expected_codes)
    np.testing.assert_allclose(quantizer.counts.numpy(), expected_counts, rtol=1e-12)


def test_a_count_at_the_limit_is_alive():
    quantizer = make(np.eye(4), [1.0, 2.0, 0.5, 4.5], restart=0.5)  # the mean is 2
    assert quantizer.limit == 1.0
    assert quantizer.revive(torch.full((4, 4), 9.0, dtype=torch.float64)).tolist() == [False, False, True, False]
    assert quantizer.codebook.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [9, 9, 9, 9], [0, 0, 0, 1]]
    assert quantizer.counts.tolist() == [1, 2, 1, 4.5]


@pytest.mark.parametrize("counts", [[0.0, 0.0], [3.0, 3.0]])
def test_codes_that_are_used_alike_are_all_alive(counts):
    assert not make(np.eye(2), counts, restart=0.99).revive(torch.zeros(2, 2, dtype=torch.float64)).any()


def test_a_revived_code_that_is_used_stays_and_one_that_is_not_goes_again():
    quantizer = make(np.float64([[0, 0], [8, 8], [9, 9], [10, 10]]), [40.0, 40.0, 0.0, 0.0], decay=0.99, restart=0.03)
    places = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]], dtype=torch.float64)
    assert quantizer.revive(places).tolist() == [False, False, True, True]
    ids = torch.tensor([0] * 35 + [1] * 35 + [2] * 10)
    quantizer.update(*quantizer.measure(quantizer.codebook[ids], ids))
    assert quantizer.revive(places + 10).tolist() == [False, False, False, True]
    np.testing.assert_allclose(quantizer.codebook.numpy()[2:], [[3, 3], [14, 14]], rtol=1e-15)


# --- the first codes


def start(vectors, codes, seed):
    """The vectors that `cluster` begins with: a random order of them, again and again."""
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed)).tolist()
    return np.array([vectors[order[number % len(order)]] for number in range(codes)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rounds", [1, 2, 10])
def test_the_first_codes_are_those_of_lloyds_iterations(seed, rounds):
    vectors = np.random.default_rng(seed).normal(size=(60, 3)) * [3, 1, 1]
    codes, counts = cluster(torch.from_numpy(vectors), 7, seed, rounds)
    expected, expected_counts = slow.lloyd(vectors, start(vectors, 7, seed), rounds)
    np.testing.assert_allclose(codes.numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(counts.numpy(), expected_counts)
    assert counts.sum() == 60


def test_of_fewer_vectors_than_codes_each_is_a_code():
    vectors = np.float64([[1, 2], [3, 4], [5, 6]])
    codes, counts = cluster(torch.from_numpy(vectors), 8, seed=1)
    np.testing.assert_allclose(codes.numpy(), start(vectors, 8, 1), rtol=1e-12)
    assert counts.tolist() == [1, 1, 1, 0, 0, 0, 0, 0]  # of equal codes the first has the vector


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_vectors_are_one_code_many_times(dtype):
    codes, counts = cluster(torch.full((50, 3), 0.1, dtype=dtype), 4, seed=0)
    assert torch.allclose(codes, torch.full((4, 3), 0.1, dtype=dtype))
    assert codes.dtype == dtype
    assert counts.tolist() == [50, 0, 0, 0]


def test_clustering_depends_on_its_seed_alone_and_leaves_torchs_own_alone():
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(100, 2)))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, again, other = (cluster(vectors, 5, seed)[0] for seed in (3, 3, 4))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_clustering_brings_vectors_nearer_to_their_codes():
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(300, 2)))

    def error(rounds: int) -> float:
        codes, _ = cluster(vectors, 12, 0, rounds)
        return float(torch.cdist(vectors, codes).min(1).values.square().mean())

    assert error(20) < error(3) < error(1)
