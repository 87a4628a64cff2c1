"""Train a dense model: ``python train.py model=cnn data=digits``. The same command as ``mmp-train``."""

from mmp.commands import train

if __name__ == "__main__":
    train()
