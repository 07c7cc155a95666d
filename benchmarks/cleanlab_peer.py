"""How suspicious `cleanlab` finds each label; run by `pruning.py` in an environment with it.

python cleanlab_peer.py labels.npy probabilities.npy out.npy
"""

import sys

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores


def main() -> None:
    labels, probabilities = np.load(sys.argv[1]), np.load(sys.argv[2])
    quality = get_label_quality_scores(labels, probabilities, method="self_confidence")
    issues = find_label_issues(labels, probabilities, n_jobs=1)
    np.save(sys.argv[3], 1 - quality + issues)  # what confident learning finds comes first


if __name__ == "__main__":
    main()
