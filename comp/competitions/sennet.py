"""Surface Dice of each kidney, at tolerance 0: of all surface, the share that truth and prediction both have.

Between eight voxels that are not all alike lies a piece of surface. Its area is that of marching cubes, as the hosts'
table of DeepMind's surface-distance has it; voxels beyond the volume are empty."""

import numpy as np

# By which of the eight voxels are set, a letter for each of the first 128 patterns; the others are their complements.
LETTERS = (
    "abbebecibceieiihbecicidjcggmgmkibceicggmcdijgkmieiihgmkigkmilgge"
    "bccgeigmcdgkijmieigmihkigklgmigecdgkgklgdfkdkdgcijmimigekdgcgccb"
)
AREAS = {"a": 0, "b": 0.216506351, "c": 0.433012702, "d": 0.649519053, "e": 0.707106781, "f": 0.866025404}
AREAS |= {"g": 0.923613132, "h": 1, "i": 1.149519053, "j": 1.299038106, "k": 1.366025404, "l": 1.414213562}
AREAS |= {"m": 1.573132185}
TABLE = np.array([AREAS[letter] for letter in LETTERS + LETTERS[::-1]])


def score_group(truth, prediction, ids):
    shared = whole = 0.0
    layers = np.zeros((2, truth.shape[1] + 2, truth.shape[2] + 2), np.uint8)  # of truth and prediction, with a rim
    for z in range(len(truth) + 1):
        before, layers = layers, np.zeros_like(layers)
        if z < len(truth):
            layers[:, 1:-1, 1:-1] = truth[z] == 1, prediction[z] == 1
        pairs = before | layers << 4
        rows = pairs[:, :-1] | pairs[:, 1:] << 1
        true, seen = TABLE[rows[:, :, :-1] | rows[:, :, 1:] << 2]
        both = (true > 0) & (seen > 0)
        shared, whole = shared + (true + seen)[both].sum(), whole + true.sum() + seen.sum()
    return shared / whole if whole else None
