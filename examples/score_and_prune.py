"""Find wrong labels in a tabular dataset, and train without them.

Real data that scikit-learn ships; a tenth of the labels is flipped first, so that we know
which ones are wrong. Takes a few seconds on a CPU.
"""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale
from torch import nn

from projections import Classification, GradientNorm, Scores, Statistic, run_pass
from selection import prune

torch.manual_seed(0)
inputs, labels = load_breast_cancer(return_X_y=True)
inputs = torch.tensor(scale(inputs), dtype=torch.float32)
labels = torch.tensor(labels)
order = torch.randperm(len(labels))
train, test = order[:400], order[400:]

# Flip a tenth of the training labels.
flipped = torch.rand(len(train)) < 0.1
noisy = torch.where(flipped, 1 - labels[train], labels[train])


def fit(rows: torch.Tensor, targets: torch.Tensor, epochs: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(30, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for batch in torch.randperm(len(rows)).split(50):
            loss = nn.functional.cross_entropy(model(rows[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def accuracy(model: nn.Module) -> float:
    return float((model(inputs[test]).argmax(1) == labels[test]).float().mean())


# Score early: a model that was trained for long has learnt the wrong labels too.
model = fit(inputs[train], noisy, epochs=3)
data = list(zip(inputs[train], noisy.tolist(), strict=True))
table = run_pass(
    Classification(model), data, [Statistic("loss"), Statistic("el2n"), GradientNorm()]
)
scores = Scores.from_table(table)

for name in scores.names:
    kept = prune(scores[name], keep=0.9, drop="highest")
    dropped = np.array(list(kept.rejected))
    found = float(flipped[dropped].float().mean())
    pruned = fit(inputs[train][kept.ids], noisy[kept.ids], epochs=40)
    print(f"{name:10} {found:4.0%} of the dropped rows were wrong; accuracy {accuracy(pruned):.3f}")
print(f"{'all rows':10} {'':34} accuracy {accuracy(fit(inputs[train], noisy, epochs=40)):.3f}")
