"""One training with Lightning: the classifier, its trainer, checkpoints, the dense model, fine-tuning."""
