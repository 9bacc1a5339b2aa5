"""Training on real data: a small CNN learns scikit-learn's 1,797 handwritten digits with AdamW."""

import _example
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 6
BATCH = 64
ACCURACY_MIN = 0.95

ROUNDS = 2  # a whole training each


def digits():
    """(train set, test pictures, test labels); pictures are (n, 1, 8, 8) float32 in 0..1."""
    pictures, labels = load_digits(return_X_y=True)
    split = train_test_split(pictures / 16.0, labels, test_size=0.25, random_state=0, stratify=labels)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) for part in split[:2])
    train_y, test_y = (torch.tensor(part) for part in split[2:])
    return TensorDataset(train_x, train_y), test_x, test_y


def network():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def prepare(device):
    train, test_x, test_y = digits()

    def work():
        torch.manual_seed(0)
        model = network().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        loss_of = nn.CrossEntropyLoss()
        order = torch.Generator().manual_seed(0)
        losses = []
        for epoch in range(EPOCHS):
            model.train()
            total = torch.zeros((), device=device)
            for x, y in DataLoader(train, BATCH, shuffle=True, generator=order):
                optimizer.zero_grad(set_to_none=True)
                loss = loss_of(model(x.to(device)), y.to(device))
                loss.backward()
                optimizer.step()
                total += loss.detach()
            losses.append(total.cpu())
            _example.progress(f"{device}: epoch {epoch + 1}/{EPOCHS}, loss {float(losses[-1]):.3f}")
        model.eval()
        with torch.no_grad():
            guess = model(test_x.to(device)).cpu()
        accuracy = float((guess.argmax(1) == test_y).float().mean())
        if accuracy <= ACCURACY_MIN:
            raise RuntimeError(f"test accuracy {accuracy:.3f} is not above {ACCURACY_MIN}")
        answer = f"test accuracy {accuracy:.1%} on {len(test_y)} digits after {EPOCHS} epochs"
        return answer, [torch.stack(losses), guess]

    return work


if __name__ == "__main__":
    _example.main(prepare)
