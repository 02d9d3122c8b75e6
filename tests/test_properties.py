"""What must hold for any masks, scores, rates and batches."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import cuts, lively, random_masks, same_tensors

from mnv3nb import DENSE_WIDTHS, Dataset, MobileNetV3Large, keep_masks, load_model, prune, save_model, threshold
from mnv3nb.data.batches import batches, to_input
from mnv3nb.model import se_widths

few = settings(max_examples=8)
rates = st.one_of(st.just(0.0), st.floats(0.001, 0.95), st.sampled_from([0.1, 0.25, 0.29, 0.5, 0.7]))


@st.composite
def scores(draw, min_layers: int = 1) -> list[torch.Tensor]:
    """One score per filter of a few small layers, with many ties or none."""
    widths = draw(st.lists(st.integers(1, 40), min_size=min_layers, max_size=4))
    values = draw(st.sampled_from([3, 20, 10**6]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return [torch.randint(values, (width,), generator=generator).float() - values // 2 for width in widths]


def slow_masks(scores, rate, multiple_of=1, min_width=1) -> list[list[bool]]:
    """`keep_masks` with sorted lists: the same rules in the slowest words."""
    ranked = sorted((float(s), i, j) for i, part in enumerate(scores) for j, s in enumerate(part))
    gone = ranked[: int(len(ranked) * rate) + 1] if rate else []
    out = []
    for i, part in enumerate(scores):
        dense = len(part)
        width = dense - sum(layer == i for _, layer, _ in gone)
        width = max(width, min(min_width, dense))
        if multiple_of <= dense:
            fitting = range(multiple_of, dense + 1, multiple_of)
            fitting = [w for w in fitting if w >= min_width] or fitting[-1:]
            width = min(fitting, key=lambda w: (abs(w - width), -w))  # halfway: the wider
        else:
            width = dense
        best = sorted(range(dense), key=lambda j: (float(part[j]), j))[dense - width :]
        out.append([j in best for j in range(dense)])
    return out


# scores and masks


@given(scores(), rates, st.integers(1, 9), st.integers(1, 5))
def test_keep_masks_are_those_of_a_slow_reference(scores, rate, multiple_of, min_width):
    multiple_of = min(multiple_of, max(map(len, scores)))
    found = keep_masks(scores, rate, multiple_of, min_width)
    assert [m.tolist() for m in found] == slow_masks(scores, rate, multiple_of, min_width)


@given(scores(), rates)
def test_masks_depend_only_on_the_order_of_the_scores(scores, rate):
    curves = (
        lambda s: s**3 + s - 7,
        lambda s: torch.atan(s / 1e6),
        lambda s: s * 1e-30,
        lambda s: torch.sign(s) * s.abs().sqrt(),
    )
    expected = keep_masks(scores, rate)
    for rising in curves:
        bent = [rising(s.double()) for s in scores]
        assert all(torch.equal(a, b) for a, b in zip(keep_masks(bent, rate), expected))


@given(st.integers(0, 2**31), rates)
def test_the_kept_count_is_exact_for_every_rate(seed, rate):
    flat = torch.rand(5016, generator=torch.Generator().manual_seed(seed)).double()
    flat = torch.where(torch.rand(5016) < 0.3, flat.round(decimals=1), flat)  # ties among them
    parts = list(flat.split(DENSE_WIDTHS))
    for part in parts:
        part[0] = 2.0  # keeps every layer alive, so that min_width adds nothing
    expected = 5016 if rate == 0 else 5016 - int(5016 * rate) - 1
    assert sum(int(m.sum()) for m in keep_masks(parts, rate, min_width=0)) == expected


@given(scores(), rates, st.integers(2, 16))
def test_multiple_of_holds_wherever_the_dense_width_allows(scores, rate, k):
    assume(k <= max(map(len, scores)))  # larger than every layer: refused
    free = keep_masks(scores, rate)
    for mask, before, part in zip(keep_masks(scores, rate, multiple_of=k), free, scores):
        width = int(mask.sum())
        if len(part) < k:
            assert width == len(part)
        else:
            assert width % k == 0 and width >= k
            assert abs(width - int(before.sum())) < k
        assert mask.all() or part[mask].min() >= part[~mask].max()


@given(scores(), st.floats(0.5, 0.99), st.integers(1, 6))
def test_min_width_keeps_the_best_filters_of_every_layer(scores, rate, least):
    for mask, part in zip(keep_masks(scores, rate, min_width=least), scores):
        assert mask.sum() >= min(least, len(part))
        assert mask.all() or part[mask].min() >= part[~mask].max()


@given(scores(), rates)
def test_the_threshold_is_the_score_up_to_which_filters_go(scores, rate):
    flat = torch.cat(scores)
    gone = int(len(flat) * rate) + 1 if rate else 0
    t = threshold(scores, rate)
    assert (flat < t).sum() < max(gone, 1) <= (flat <= t).sum()


@pytest.mark.parametrize("rate", [1.0, 1.2, -0.1, float("nan"), True, "0.5", None])
def test_a_rate_outside_0_to_1_is_refused(rate):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got .*removes half of all filters"):
        keep_masks([torch.arange(3.0)], rate)


@pytest.mark.parametrize(
    "bad", [[], [torch.zeros(2, 2)], [torch.tensor([1.0, float("nan")])], [torch.tensor([float("inf")])]]
)
def test_scores_that_are_not_finite_numbers_one_per_filter_are_refused(bad):
    with pytest.raises(ValueError, match="1-D tensors of finite numbers"):
        keep_masks(bad, 0.5)


@pytest.mark.parametrize("bad", [{"multiple_of": 0}, {"multiple_of": 1.5}, {"min_width": -1}])
def test_widths_asked_for_must_be_integers(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be an integer"):
        keep_masks([torch.arange(3.0)], 0.5, **bad)


# pruning


@few
@given(cuts, st.integers(0, 3))
def test_pruning_with_the_kept_squeeze_is_the_dense_network_with_channels_zeroed(cut, seed):
    """In 64 bits, where rounding cannot hide an error."""
    masks, model = random_masks(cut), lively(seed).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    small = prune(model, masks, squeeze="keep")
    for block, mask in zip(model.blocks, masks):
        block.depthwise.register_forward_hook(lambda _, __, out, mask=mask: out * mask[:, None, None])
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)


@few
@given(cuts, st.sampled_from(["paper", "keep"]))
def test_a_pruned_network_trains_and_its_widths_are_the_masks(dense, cut, squeeze):
    masks = random_masks(cut)
    small = prune(dense, masks, squeeze)
    widths = tuple(int(mask.sum()) for mask in masks)
    assert small.widths == widths
    assert small.squeeze == (dense.squeeze if squeeze == "keep" else se_widths(widths))
    small.train()
    assert not prune(dense, masks, squeeze).training
    logits = small(torch.randn(4, 3, 32, 32))
    assert logits.shape == (4, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    assert len(small.state_dict()) == len(MobileNetV3Large(widths=widths, squeeze=small.squeeze).state_dict())


@few
@given(cuts, st.sampled_from(["paper", "keep"]))
def test_kept_weights_are_bit_equal_slices_and_the_old_network_is_untouched(cut, squeeze):
    masks, model = random_masks(cut), lively(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = prune(model, masks, squeeze)
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        prune(model, masks, squeeze)
        assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn
    expected = dict(before)
    for i, mask in enumerate(masks):
        for name in expected:
            if name.startswith((f"blocks.{i}.expand.", f"blocks.{i}.depthwise.")) and before[name].ndim:
                expected[name] = before[name][mask]
        expected[f"blocks.{i}.project.0.weight"] = before[f"blocks.{i}.project.0.weight"][:, mask]
        if model.squeeze[i]:
            down, up = before[f"blocks.{i}.se.fc1.weight"][:, mask], before[f"blocks.{i}.se.fc2.weight"][mask]
            products = [float(down[q].abs().sum() * up[:, q].abs().sum()) for q in range(len(down))]
            inner = sorted(sorted(range(len(down)), key=lambda q: -products[q])[: small.squeeze[i]])
            expected[f"blocks.{i}.se.fc1.weight"] = down[inner]
            expected[f"blocks.{i}.se.fc1.bias"] = before[f"blocks.{i}.se.fc1.bias"][inner]
            expected[f"blocks.{i}.se.fc2.weight"] = up[:, inner]
            expected[f"blocks.{i}.se.fc2.bias"] = before[f"blocks.{i}.se.fc2.bias"][mask]
    assert same_tensors(small.state_dict(), expected)
    with torch.no_grad():
        for value in small.state_dict().values():
            value.zero_()
    assert same_tensors(model.state_dict(), before)


def test_pruning_twice_is_pruning_once_with_both_masks(dense):
    generator = torch.Generator().manual_seed(5)
    first = [torch.rand(width, generator=generator) < 0.7 for width in DENSE_WIDTHS]
    once = prune(dense, first, "keep")
    second = [torch.rand(width, generator=generator) < 0.7 for width in once.widths]
    both = []
    for one, two in zip(first, second):
        two[-1] = True
        mask = one.clone()
        mask[one] = two
        both.append(mask)
    assert same_tensors(prune(once, second, "keep").state_dict(), prune(dense, both, "keep").state_dict())


def test_masks_that_do_not_fit_are_refused(dense):
    full = [torch.ones(width, dtype=torch.bool) for width in DENSE_WIDTHS]
    for bad, message in (
        (full[:14], "masks must be 15 bool tensors, one per block, got 14"),
        (
            [*full[:14], full[14].float()],
            r"blocks.14 must be a bool tensor of shape \(960,\), got torch.float32 \(960,\)",
        ),
        ([full[1], *full[1:]], r"blocks.0 must be a bool tensor of shape \(16,\), got torch.bool \(64,\)"),
        ([[True] * 16, *full[1:]], "blocks.0 must be a bool tensor .*, got list"),
        ([*full[:2], ~full[2], *full[3:]], "blocks.2 removes all 72 filters"),
    ):
        with pytest.raises(ValueError, match=message):
            prune(dense, bad)
    with pytest.raises(ValueError, match="squeeze must be one of paper, keep, got 'dense'"):
        prune(dense, full, "dense")


@pytest.mark.parametrize(
    "arguments",
    [
        {"widths": [16] * 14},
        {"widths": [0] * 15},
        {"widths": [1.0] * 15},
        {"num_classes": 0},
        {"squeeze": [8] * 15},
        {"squeeze": [0] * 15},
        {"squeeze": [-1] * 15},
    ],
)
def test_a_network_of_impossible_widths_is_refused(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        MobileNetV3Large(**arguments)


@pytest.mark.parametrize("given", [0, True, 2.0])
def test_a_wrong_number_of_classes_is_named(given):
    with pytest.raises(ValueError, match=f"num_classes must be an integer ≥ 1, got {given}$"):
        MobileNetV3Large(given)


@settings(max_examples=5)
@given(cuts, st.sampled_from(["paper", "keep"]), st.integers(1, 100))
def test_save_and_load_give_the_same_network(tmp_path_factory, cut, squeeze, num_classes):
    small = prune(lively(2, num_classes=num_classes), random_masks(cut), squeeze)
    path = tmp_path_factory.mktemp("saved") / "m.safetensors"
    save_model(small, path, accuracy=0.5, classes=["a"])
    again = load_model(path)
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(again(x), small(x)) and same_tensors(again.state_dict(), small.state_dict())
    assert (again.num_classes, again.widths, again.squeeze) == (num_classes, small.widths, small.squeeze)
    assert again.metadata == {"accuracy": 0.5, "classes": ["a"]} and not again.training


# batches


def images_of(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, 3, height, width), generator=generator).to(torch.uint8)


def epoch_of(images: torch.Tensor, batch_size: int, seed: int, augment: str = "none") -> list[tuple]:
    """One epoch's batches; the labels are the images' numbers."""
    numbers = torch.arange(len(images))
    data = Dataset(images, numbers, images[:1], numbers[:1], ("any",))
    return list(batches(data, batch_size, torch.Generator().manual_seed(seed), augment))


def slow_views(image: torch.Tensor, pad: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every shift of one image by up to `pad` pixels over a border of zeros, and the mirror image of each."""
    height, width = image.shape[1:]
    views = {}
    for down in range(-pad, pad + 1):
        for right in range(-pad, pad + 1):
            view = torch.zeros_like(image)
            for y in range(height):
                for x in range(width):
                    if 0 <= y - down < height and 0 <= x - right < width:
                        view[:, y, x] = image[:, y - down, x - right]
            views[view.numpy().tobytes()] = (down, right, False)
            views.setdefault(view.flip(2).contiguous().numpy().tobytes(), (down, right, True))
    return views


@settings(max_examples=6)
@given(st.sampled_from([(8, 8), (5, 9), (17, 16)]), st.sampled_from(["crop", "crop_flip"]), st.integers(0, 100))
def test_augmented_images_are_shifts_and_mirror_images_of_their_originals(size, augment, seed):
    images = images_of(12, *size)
    views = [slow_views(image, max(1, size[1] // 8)) for image in images]
    seen = []
    for x, y in epoch_of(images, 5, seed, augment):
        assert x.dtype == torch.uint8 and x.shape == (len(y), 3, *size)
        seen += [views[int(i)][im.numpy().tobytes()] for im, i in zip(x, y)]  # KeyError: not a view of its original
    assert len(set(seen)) > 1
    assert augment == "crop_flip" or not any(flipped for *_, flipped in seen)


def test_all_shifts_occur_equally_often_and_half_of_the_images_are_mirrored():
    image = images_of(1, 8, 8)
    views = slow_views(image[0], 1)
    many = epoch_of(image.expand(3600, -1, -1, -1), 600, 0, "crop_flip")
    counts = dict.fromkeys(views.values(), 0)
    for x, _ in many:
        for im in x:
            counts[views[im.contiguous().numpy().tobytes()]] += 1
    assert len(counts) == 18 and all(140 < count < 260 for count in counts.values())  # 200 expected, deviation 14


@given(st.integers(2, 40), st.integers(2, 17), st.integers(0, 100), st.sampled_from(["none", "crop"]))
def test_an_epoch_shows_every_image_once_save_a_last_batch_of_one(count, batch_size, seed, augment):
    images = images_of(count, 4, 4)

    pairs = epoch_of(images, batch_size, seed, augment)
    labels = torch.cat([y for _, y in pairs]).tolist()
    assert len(set(labels)) == len(labels) == count - (count % batch_size == 1)
    assert all(len(y) == batch_size for _, y in pairs[:-1]) and len(pairs[-1][1]) > 1
    if augment == "none":
        assert all(torch.equal(x, images[y]) for x, y in pairs)
    assert all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        for a, b in zip(pairs, epoch_of(images, batch_size, seed, augment))
    )


def test_another_epoch_is_another_order():
    orders = {tuple(torch.cat([y for _, y in epoch_of(images_of(9, 4, 4), 4, seed)]).tolist()) for seed in range(5)}
    assert len(orders) == 5


@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.integers(1, 40))
def test_inputs_are_floats_from_minus_one_to_one_at_the_size_asked_for(count, height, width, image_size):
    images = images_of(count, height, width)
    images[0, 0, 0, 0] = 0
    before = images.clone()
    x = to_input(images, image_size)
    assert x.shape == (count, 3, image_size, image_size) and x.dtype == torch.float32
    assert x.min() >= -1 and x.max() <= 1 and torch.equal(images, before)
    scaled = images.double() / 127.5 - 1
    expected = F.interpolate(scaled, (image_size, image_size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=1e-5)


def test_black_is_minus_one_and_white_is_one():
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert to_input(images, 4).flatten(1).unique(dim=1).flatten().tolist() == [-1.0, 1.0]
