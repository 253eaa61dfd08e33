"""Trains a small convolutional network on scikit-learn's digits and exports it.

It writes package/model.onnx. It also writes ten pictures that were not used for training as PNG files, and PyTorch's
answers for them to expected.json.

    python3 -m venv env && env/bin/pip install torch scikit-learn onnx onnxscript pillow
    env/bin/python examples/digits/train.py
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent


class Digits(nn.Module):
    """Maps [n, 8, 8] pixels from 0 (paper) to 16 (ink) to ten scores."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10),
        )

    def forward(self, image):
        return self.layers(image.unsqueeze(1) / 16)


def main():
    torch.manual_seed(0)
    digits = load_digits()
    seen, unseen, labels, truth = train_test_split(digits.images.astype(np.float32), digits.target, random_state=0)
    model, loss = Digits(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(30):
        for rows in torch.randperm(len(seen)).split(64):
            optimizer.zero_grad()
            loss(model(torch.from_numpy(seen[rows])), torch.from_numpy(labels[rows])).backward()
            optimizer.step()
    model = nn.Sequential(model, nn.Softmax(dim=1)).eval()
    with torch.no_grad():
        answers = model(torch.from_numpy(unseen)).numpy()
    print(f"right on {np.mean(answers.argmax(1) == truth):.4f} of {len(truth)} unseen pictures")
    torch.onnx.export(
        model, (torch.from_numpy(unseen[:2]),), HERE / "package/model.onnx",
        input_names=["image"], output_names=["probabilities"], opset_version=18,
        external_data=False, dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False,
    )
    (HERE / "pictures").mkdir(exist_ok=True)
    expected = []
    for at, digit in enumerate(truth[:10]):
        picture = Image.fromarray(np.round(255 - unseen[at] * 255 / 16).astype(np.uint8))
        picture.save(HERE / f"pictures/{at}.png")
        back = (255 - np.asarray(picture, np.float32)) / 255 * 16  # as rounded by the PNG's 256 shades
        with torch.no_grad():
            row = model(torch.from_numpy(back)[None]).numpy()[0]
        probabilities = [round(float(x), 7) for x in row]
        expected.append({"picture": f"{at}.png", "digit": int(digit), "probabilities": probabilities})
    (HERE / "expected.json").write_text(json.dumps(expected) + "\n")


main()
