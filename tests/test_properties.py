"""What must hold for any masks, scores, rates and batches, and what a run's name depends on."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import ROOT, cuts, lively, random_masks, same_tensors

from mnv3nb import DENSE_WIDTHS, MobileNetV3Large, keep_masks, load_model, prune, save_model, threshold
from mnv3nb.config import PruneConfig, RunConfig
from mnv3nb.data import batches, to_input
from mnv3nb.model import squeeze_widths
from mnv3nb.training import TrainConfig

few = settings(max_examples=8)
rates = st.one_of(st.just(0.0), st.floats(0.001, 0.95), st.sampled_from([0.1, 0.25, 0.29, 0.5, 0.7]))


@st.composite
def scores(draw, min_layers: int = 1) -> list[torch.Tensor]:
    """One score a filter of a few small layers, with many ties or none."""
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


@pytest.mark.parametrize("bad", [[], [torch.zeros(2, 2)], [torch.tensor([1.0, float("nan")])], [torch.tensor([float("inf")])]])
def test_scores_that_are_not_finite_numbers_one_a_filter_are_refused(bad):
    with pytest.raises(ValueError, match="1-D tensors of finite numbers"):
        keep_masks(bad, 0.5)


@pytest.mark.parametrize("bad", [{"multiple_of": 0}, {"multiple_of": 1.5}, {"min_width": -1}])
def test_widths_asked_for_must_be_whole(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be a whole number"):
        keep_masks([torch.arange(3.0)], 0.5, **bad)


# pruning


@few
@given(cuts, st.integers(0, 3))
def test_pruning_with_the_kept_squeeze_is_the_dense_network_with_channels_zeroed(cut, seed):
    """In 64 bits, where rounding cannot hide an error."""
    masks, model = random_masks(cut), lively(seed).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    small = prune(model, masks, squeeze="keep")
    for unit, mask in zip(model.blocks, masks):
        unit.depthwise.register_forward_hook(lambda _, __, out, mask=mask: out * mask[:, None, None])
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)


@few
@given(cuts, st.sampled_from(["paper", "keep"]))
def test_a_pruned_network_trains_and_its_widths_are_the_masks(dense, cut, squeeze):
    masks = random_masks(cut)
    small = prune(dense, masks, squeeze)
    widths = tuple(int(mask.sum()) for mask in masks)
    assert small.widths == widths
    assert small.squeeze == (dense.squeeze if squeeze == "keep" else squeeze_widths(widths))
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
        (full[:14], "masks must be 15 bool tensors, one a unit, got 14"),
        ([*full[:14], full[14].float()], r"unit 14 must be a bool tensor of shape \(960,\), got torch.float32 \(960,\)"),
        ([full[1], *full[1:]], r"unit 0 must be a bool tensor of shape \(16,\), got torch.bool \(64,\)"),
        ([[True] * 16, *full[1:]], "unit 0 must be a bool tensor .*, got list"),
        ([*full[:2], ~full[2], *full[3:]], "unit 2 removes all 72 filters"),
    ):
        with pytest.raises(ValueError, match=message):
            prune(dense, bad)
    with pytest.raises(ValueError, match="squeeze must be one of paper, keep, got 'dense'"):
        prune(dense, full, "dense")


@pytest.mark.parametrize(
    "arguments",
    [{"widths": [16] * 14}, {"widths": [0] * 15}, {"widths": [1.0] * 15}, {"num_classes": 0}, {"squeeze": [8] * 15},
     {"squeeze": [0] * 15}, {"squeeze": [-1] * 15}],
)  # fmt: skip
def test_a_network_of_impossible_widths_is_refused(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        MobileNetV3Large(**arguments)


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


# names of runs


CHILD = RunConfig(train=TrainConfig(lam=1e-3, seed=3), parent=RunConfig(), prune=PruneConfig(rate=0.3), holdout=100)


def test_a_runs_name_is_the_same_in_every_process():
    code = (
        "from mnv3nb.config import *; train = TrainConfig(lam=1e-3, seed=3)\n"
        "print(RunConfig().key, RunConfig(train=train, parent=RunConfig(), prune=PruneConfig(rate=0.3), holdout=100).key)"
    )
    environ = os.environ | {"PYTHONHASHSEED": "1"}  # this process has another, drawn at random
    done = subprocess.run([sys.executable, "-c", code], env=environ, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [RunConfig().key, CHILD.key]


def test_the_default_config_and_its_name_are_what_they_always_were():
    """A name leaves defaults out: changing one renames nothing and would pass off old runs as new. Raise FORMAT with it."""
    train = {
        "epochs": 25, "batch_size": 32, "image_size": 32, "lr": 1e-3, "schedule": "cosine", "lam": 0.0, "penalty": "subgradient",
        "penalized": "all", "gamma_init": 1.0, "augment": "none", "seed": 0,
    }  # fmt: skip
    assert asdict(RunConfig()) == {
        "dataset": "digits", "train": train, "parent": None, "prune": None, "train_images": None, "holdout": 0,
    }  # fmt: skip
    assert asdict(PruneConfig()) == {
        "rate": 0.5, "criterion": "gamma_sparsity", "multiple_of": 1, "min_width": 1, "squeeze": "paper", "inherit": True,
    }  # fmt: skip
    assert RunConfig().key == "5e2016bb4e7b"


def test_whatever_differs_has_another_name():
    changes = [{"dataset": "cifar10"}, {"train_images": 5}, {"holdout": 5}, {"parent": RunConfig(), "prune": PruneConfig()}]
    changes += [{"train": TrainConfig(**{name: value})} for name, value in (
        ("epochs", 1), ("batch_size", 2), ("image_size", 8), ("lr", 1.0), ("schedule", "constant"), ("lam", 1e-5),
        ("penalty", "proximal"), ("penalized", "expansion"), ("gamma_init", 0.5), ("augment", "crop"), ("seed", 1),
    )]  # fmt: skip
    changes += [{"parent": RunConfig(), "prune": PruneConfig(**{name: value})} for name, value in (
        ("rate", 0.4), ("criterion", "l1"), ("multiple_of", 8), ("min_width", 2), ("squeeze", "keep"), ("inherit", False),
    )]  # fmt: skip
    changes.append({"parent": RunConfig(train=TrainConfig(seed=1)), "prune": PruneConfig()})
    keys = [RunConfig(**change).key for change in changes] + [RunConfig().key]
    assert len(set(keys)) == len(keys) == 23
    assert all(len(key) == 12 and int(key, 16) >= 0 for key in keys)


@given(
    st.builds(TrainConfig, epochs=st.integers(0, 300), lam=st.floats(0, 1), lr=st.floats(0, 1), seed=st.integers(0, 2**40)),
    st.none() | st.builds(PruneConfig, rate=st.floats(0, 0.99), criterion=st.sampled_from(["l1", "random"])),
)
def test_a_config_written_as_json_and_read_back_is_the_same(train, pruning):
    config = RunConfig(train=train, parent=RunConfig() if pruning else None, prune=pruning)
    again = RunConfig.from_dict(json.loads(json.dumps(asdict(config))))
    assert again == config and again.key == config.key


def test_configs_that_make_no_sense_are_refused():
    for bad, message in (
        (lambda: TrainConfig(epochs=-1), "epochs must be a whole number ≥ 0, got -1"),
        (lambda: TrainConfig(batch_size=1), "batch_size must be a whole number ≥ 2"),
        (lambda: TrainConfig(lr=float("nan")), "lr must be a finite number ≥ 0, got nan"),
        (lambda: TrainConfig(lam=-1e-5), "lam must be a finite number"),
        (lambda: TrainConfig(schedule="linear"), "schedule must be one of cosine, cosine_epoch, constant, got 'linear'"),
        (lambda: TrainConfig(augment="flip"), "augment must be one of none, crop, crop_flip"),
        (lambda: RunConfig(prune=PruneConfig()), "parent and prune go together"),
        (lambda: RunConfig(parent=RunConfig(), prune=PruneConfig(criterion="l3")), "unknown criterion 'l3'"),
        (lambda: RunConfig(parent=RunConfig("cifar10"), prune=PruneConfig()), "a run has its parent's data set"),
        (lambda: RunConfig.from_dict({"train": {"speed": 1}}), "not a run's config"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()


# batches


def images_of(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


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
    generator = torch.Generator().manual_seed(seed)
    seen = []
    for x, y in batches(images, torch.arange(12), 5, generator=generator, augment=augment):
        assert x.dtype == torch.uint8 and x.shape == (len(y), 3, *size)
        seen += [views[int(i)][im.numpy().tobytes()] for im, i in zip(x, y)]  # KeyError: not a view of its original
    assert len(set(seen)) > 1
    assert augment == "crop_flip" or not any(flipped for *_, flipped in seen)


def test_all_shifts_occur_equally_often_and_half_of_the_images_are_mirrored():
    image = images_of(1, 8, 8)
    views = slow_views(image[0], 1)
    generator = torch.Generator().manual_seed(0)
    many = batches(image.expand(3600, -1, -1, -1), torch.zeros(3600), 600, generator=generator, augment="crop_flip")
    counts = dict.fromkeys(views.values(), 0)
    for x, _ in many:
        for im in x:
            counts[views[im.contiguous().numpy().tobytes()]] += 1
    assert len(counts) == 18 and all(140 < count < 260 for count in counts.values())  # 200 expected, deviation 14


@given(st.integers(2, 40), st.integers(2, 17), st.integers(0, 100), st.sampled_from(["none", "crop"]))
def test_an_epoch_shows_every_image_once_save_a_last_batch_of_one(count, batch_size, seed, augment):
    images = images_of(count, 4, 4)

    def epoch(seed):
        return list(
            batches(images, torch.arange(count), batch_size, generator=torch.Generator().manual_seed(seed), augment=augment)
        )

    pairs = epoch(seed)
    labels = torch.cat([y for _, y in pairs]).tolist()
    assert len(set(labels)) == len(labels) == count - (count % batch_size == 1)
    assert all(len(y) == batch_size for _, y in pairs[:-1]) and len(pairs[-1][1]) > 1
    if augment == "none":
        assert all(torch.equal(x, images[y]) for x, y in pairs)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(pairs, epoch(seed)))


def test_another_epoch_is_another_order():
    orders = {
        tuple(
            torch.cat([y for _, y in batches(images_of(9, 4, 4), torch.arange(9), 4, generator=torch.Generator().manual_seed(s))])
        )
        for s in range(5)
    }
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
