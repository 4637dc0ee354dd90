"""Dice of a slide, of all its windows together."""


def score_group(truth, prediction, ids):
    both = (truth == 1).sum() + (prediction == 1).sum()
    return 2 * ((truth == 1) & (prediction == 1)).sum() / both if both else 1.0
