"""How alike two sets of features are, beside the Fréchet distance: KID, precision and recall; and IS."""

from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_F_SCORE, prc_features_to_metric

from errors import UserError

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
NEIGHBOURS = 3
IS_SPLITS = 10


def inception_score(logits: Tensor) -> dict:
    """Inception Score of logits (n, classes), n at least 1 (Salimans et al. 2016, arXiv 1606.03498).

    exp(E[KL(p(y|x) ‖ p(y))]), by torch-fidelity: `value` is the mean over 10 shuffled `splits`, or as many as
    there are images, and `std` their deviation.
    """
    splits = min(IS_SPLITS, len(logits))
    result = isc_features_to_metric(logits, splits=splits)
    return {"value": result[KEY_METRIC_ISC_MEAN], "std": result[KEY_METRIC_ISC_STD], "splits": splits}


def kernel_distance(made: Tensor, real: Tensor) -> dict:
    """Kernel distance of features (n, dim) and (m, dim) (Bińkowski et al. 2018, arXiv 1801.01401, section 4).

    The unbiased squared MMD with the kernel (x·y / dim + 1)³, by torch-fidelity: `value` is the mean over 100
    random `subsets` of 1,000 images, or of as many as the smaller set has, and `std` their deviation.
    Raises UserError below two images.
    """
    subset_size = min(KID_SUBSET_SIZE, len(made), len(real))
    if subset_size < 2:
        raise UserError(f"{subset_size} images: a kernel distance needs at least two in each set")
    result = kid_features_to_metric(
        made, real, kid_subsets=KID_SUBSETS, kid_subset_size=subset_size, verbose=False
    )
    return {
        "value": result[KEY_METRIC_KID_MEAN],
        "std": result[KEY_METRIC_KID_STD],
        "subsets": KID_SUBSETS,
        "subset_size": subset_size,
    }


def precision_recall(made: Tensor, real: Tensor) -> dict:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991, equations 1 and 2).

    made and real are features (n, dim) and (m, dim); by torch-fidelity, on their device. `precision` is the
    share of made images within the reach of some real one's third-nearest neighbour, `recall` the share of
    real ones within a made one's; `value` is their harmonic mean. Raises UserError below four images.
    """
    fewest = min(len(made), len(real))
    if fewest <= NEIGHBOURS:
        raise UserError(f"{fewest} images: precision and recall need {NEIGHBOURS + 1} in each set")
    result = prc_features_to_metric(made, real, prc_neighborhood=NEIGHBOURS, save_cpu_ram=True, verbose=False)
    return {
        "value": result[KEY_METRIC_F_SCORE],
        "precision": result["precision"],
        "recall": result["recall"],
        "neighbours": NEIGHBOURS,
    }
