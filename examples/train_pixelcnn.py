"""Train `digits.pixelcnn`, a gated PixelCNN of 8x8 binary digits, by maximum likelihood. About ten
minutes.

Data, held-out images, changes of the images and `--validate` are those of `train_made.py`.
"""

from __future__ import annotations

from digits import fast, setup
from train_made import train

from experts import PixelCNN


def main() -> None:
    setup()
    expert = PixelCNN((8, 8), channels=24, layers=4, kernel=5, dropout=0.3)
    kind = "autoregressive density of bits (gated PixelCNN, 4 layers of 24 features)"
    train(
        expert,
        "digits.pixelcnn",
        kind,
        epochs=1 if fast() else 150,
        rate=2e-3,
        decay=0.01,
        keep=0.998,
    )


if __name__ == "__main__":
    main()
