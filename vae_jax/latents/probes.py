"""What labels and known factors a code gives away: clusters, neighbours, linear probes. Fit on training codes, score held-out codes."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier


def silhouette(code_nd, label_n, limit: int = 5000, seed: int = 0) -> float:
    """Mean silhouette in -1..1 of the labels as clusters (Rousseeuw 1987), over at most `limit` examples drawn by seed.

    NaN where fewer than two classes, or no class with two examples, are left: the measure is not defined there.
    """
    code, label = np.asarray(code_nd, np.float64), np.asarray(label_n)
    if len(code) > limit:
        chosen = np.random.default_rng(seed).permutation(len(code))[:limit]
        code, label = code[chosen], label[chosen]
    if not 2 <= len(np.unique(label)) < len(label):
        return float("nan")
    return float(silhouette_score(code, label))


def knn_accuracy(train_nd, train_label_n, test_md, test_label_m, k: int = 5) -> float:
    """Share of held-out examples whose label the k nearest training codes (Euclidean) vote for."""
    model = KNeighborsClassifier(min(k, len(train_nd))).fit(train_nd, train_label_n)
    return float(model.score(test_md, test_label_m))


def subset(label_n, count: int, seed: int = 0) -> np.ndarray:
    """Indices of `count` examples (0 or more than there are: all), as evenly over the classes as they allow, drawn by seed."""
    label = np.asarray(label_n)
    order = np.random.default_rng(seed).permutation(len(label))
    if not 0 < count < len(label):
        return order
    turn = np.empty(len(label), np.int64)  # the how-manieth of its class each example is
    for value in np.unique(label):
        members = order[label[order] == value]
        turn[members] = np.arange(len(members))
    return order[np.argsort(turn[order], kind="stable")][:count]


def linear_probe(train_nd, train_label_n, test_md, test_label_m, counts=(0,), seed: int = 0) -> dict[int, float]:
    """Held-out accuracy of logistic regression, by number of training labels used (0 = all).

    Codes are divided by one number, their root mean square: each dimension by its own would make those that hold little as loud as the others.
    Raises ValueError where a subset holds a single class.
    """
    unit, found = _unit(train_nd), {}
    for count in counts:
        chosen = subset(train_label_n, count, seed)
        model = LogisticRegression(max_iter=1000).fit(np.asarray(train_nd)[chosen] / unit, np.asarray(train_label_n)[chosen])
        found[count] = float(model.score(np.asarray(test_md) / unit, test_label_m))
    return found


def grouped_probe(code_nd, label_n, group_n, folds: int = 5, seed: int = 0) -> float:
    """Accuracy of logistic regression as in `linear_probe`, every group (such as a recording) held out once: the mean over the folds.

    NaN where a class has fewer groups than folds: some fold would have none of it.
    """
    label, group = np.asarray(label_n), np.unique(np.asarray(group_n), return_inverse=True)[1]
    if min((len(np.unique(group[label == value])) for value in np.unique(label)), default=0) < folds:
        return float("nan")
    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return float(cross_val_score(LogisticRegression(max_iter=1000), np.asarray(code_nd) / _unit(code_nd), label, groups=group, cv=parts).mean())


def _unit(code_nd) -> float:
    return float(np.sqrt(np.mean(np.square(code_nd)))) or 1.0


def factor_correlation(train_nd, train_factor_nf, test_md, test_factor_mf) -> tuple[np.ndarray, np.ndarray]:
    """How well one direction of the code follows each known factor: held-out Pearson correlations [f] and unit directions [f, d].

    The direction is that of the least-squares fit on the training codes. Row B5 asks > 0.7.
    """
    train, test = np.asarray(train_nd, np.float64), np.asarray(test_md, np.float64)
    wanted, truth = np.asarray(train_factor_nf, np.float64), np.asarray(test_factor_mf, np.float64)
    weights = np.linalg.lstsq(train - train.mean(0), wanted - wanted.mean(0), rcond=None)[0]
    guess = test @ weights
    guess, truth = guess - guess.mean(0), truth - truth.mean(0)
    scale = np.sqrt((guess**2).sum(0) * (truth**2).sum(0))
    correlation = np.divide((guess * truth).sum(0), scale, out=np.zeros(len(scale)), where=scale > 0)
    return correlation, (weights / np.maximum(np.linalg.norm(weights, axis=0), np.finfo(np.float64).tiny)).T
