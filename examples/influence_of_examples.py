"""Which training images made a model give its answer? EK-FAC, and an index that is faster.

Real data that scikit-learn ships. Takes less than a minute on a CPU.
"""

import tempfile
import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from influence import EKFAC, build_index
from projections import Classification

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16, dtype=torch.float32)
labels = torch.tensor(labels)
train = list(zip(images[:1500], labels[:1500].tolist(), strict=True))
queries = list(zip(images[1500:1510], labels[1500:1510].tolist(), strict=True))

model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for _ in range(20):
    for batch in torch.randperm(1500).split(64):
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
task = Classification(model.eval())

# The curvature: two passes over the training data.
ekfac = EKFAC(seed=0).fit(task, train)
scores = ekfac.scores(task, queries, train)  # one row a query; larger = more helpful
print("shape of the scores:", scores.values.shape)

# The same question to an index of 512 numbers an example.
with tempfile.TemporaryDirectory() as folder:
    index = build_index(ekfac, task, train, num_dims=512, path=folder)
    start = time.perf_counter()
    top, bottom = index.search(task, queries, k=5)
    print(f"10 queries answered in {1e3 * (time.perf_counter() - start):.0f} ms")

exact = np.argsort(-scores.values, axis=1)[:, :5]
for query in range(3):
    given = int(labels[1500 + query])
    helpful = labels[top.ids[query]].tolist()
    harmful = labels[bottom.ids[query]].tolist()
    shared = len(set(top.ids[query].tolist()) & set(exact[query].tolist()))
    print(f"a {given}: helped by {helpful}, harmed by {harmful}; {shared} of 5 as full EK-FAC")
