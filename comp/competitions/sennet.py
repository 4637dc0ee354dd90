"""Surface Dice of each kidney, at tolerance 0: of all surface, the share that truth and prediction both have.

Between eight voxels that are not all alike lies surface, as much as the hosts' table says; beyond it is nothing."""

import numpy as np

# Areas, and by which of the eight voxels are set a letter for each; what is set and what is not may be swapped.
AREAS = [0, 0.216506351, 0.433012702, 0.649519053, 0.707106781, 0.866025404, 0.923613132, 1]
AREAS += [1.149519053, 1.299038106, 1.366025404, 1.414213562, 1.573132185]
LETTERS = "abbebecibceieiihbecicidjcggmgmkibceicggmcdijgkmieiihgmkigkmilgge"
LETTERS += "bccgeigmcdgkijmieigmihkigklgmigecdgkgklgdfkdkdgcijmimigekdgcgccb"
TABLE = np.array(AREAS)[[ord(letter) - ord("a") for letter in LETTERS + LETTERS[::-1]]]


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
        shared += (true + seen)[(true > 0) & (seen > 0)].sum()
        whole += true.sum() + seen.sum()
    return shared / whole if whole else None
