"""Scores, feature maps and accuracies of the explorer's networks, computed when they are first needed."""

from collections.abc import Mapping

from torch import Tensor, nn

from ..data.batches import Dataset, to_input
from ..importance import score
from ..pruning import keep_masks, prune
from ..repair import fold_bias
from ..report.feature_maps import expansion_maps
from ..runs.find_or_train import first_batches
from ..training import evaluate
from .tables import Setting


class Measurements:
    """What can be measured of `networks` (by λ), with the first `images` test images of `dataset`."""

    def __init__(self, networks: Mapping[float, nn.Module], dataset: Dataset, image_size: int, images: int):
        self.networks = networks
        self.dataset = dataset
        self.image_size = image_size
        self.test_images = dataset.test_images[:images]
        self.test_labels = dataset.test_labels[:images]
        self._scores: dict[tuple[float, str], list[Tensor]] = {}
        self._raw: dict[Setting, dict[int, float]] = {}  # {rate in %: accuracy in %}
        self._folded: dict[Setting, dict[int, float]] = {}

    def scores(self, lam: float, criterion: str) -> list[Tensor]:
        """Scores (width,) of each block of one network; kept, since some criteria take seconds."""
        if (lam, criterion) not in self._scores:
            batches = first_batches(self.dataset, self.image_size)
            self._scores[lam, criterion] = score(self.networks[lam], criterion, batches)
        return self._scores[lam, criterion]

    def maps(self, lam: float, image: int) -> list[Tensor]:
        """Feature maps (width, H, W) of each block's expansion for one test image."""
        x = to_input(self.test_images[image][None], self.image_size)
        return [maps[0] for maps in expansion_maps(self.networks[lam], x)]

    def measure_accuracies(self, setting: Setting, percent: int) -> None:
        """Measure the raw and the folded accuracy of the network pruned at a rate of `percent`, and keep both."""
        model = self.networks[setting.lam]
        scores = self.scores(setting.lam, setting.criterion)
        masks = keep_masks(scores, percent / 100, setting.multiple_of)
        raw = prune(model, masks, setting.squeeze)
        folded = fold_bias(model, raw, masks, self.image_size)
        self._raw.setdefault(setting, {})[percent] = self._accuracy(raw)
        self._folded.setdefault(setting, {})[percent] = self._accuracy(folded)

    def accuracies(self, setting: Setting) -> dict[str, dict[int, float]]:
        """{stage: {rate in %: accuracy in %}} of all that has been measured."""
        # Copies: the background adds to the originals while the picture is drawn.
        return {"raw": dict(self._raw.get(setting, {})), "folded": dict(self._folded.get(setting, {}))}

    def _accuracy(self, model: nn.Module) -> float:
        return 100 * evaluate(model, self.test_images, self.test_labels, self.image_size)
