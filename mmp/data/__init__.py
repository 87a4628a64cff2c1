"""Images: readers, transforms, augmentation, batches and the four disjoint splits."""
