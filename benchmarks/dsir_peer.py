"""The package `data-selection` on two files: fits, weighs, and prints its times as JSON.

python dsir_peer.py RAW TARGET FOLDER NUM_PROC
"""

import json
import sys
import time

from data_selection import HashedNgramDSIR

if __name__ == "__main__":
    raw, target, folder, num_proc = sys.argv[1:]
    peer = HashedNgramDSIR([raw], [target], cache_dir=folder, num_proc=int(num_proc))
    began = time.perf_counter()
    peer.fit_importance_estimator()
    fitted = time.perf_counter()
    peer.compute_importance_weights()
    ended = time.perf_counter()
    print(json.dumps({"fit": fitted - began, "weigh": ended - fitted}))
